package evidence

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// local are the types of file systems whose files can be read without asking
// anybody else: neither another machine nor a process, as FUSE does, which may
// never answer. A type that is not here counts as one that may not. On overlay the
// layers below are the administrator's to choose.
var local = map[string]bool{
	"bcachefs": true, "btrfs": true, "cramfs": true, "erofs": true, "exfat": true, "ext2": true, "ext3": true, "ext4": true, "f2fs": true,
	"hfsplus": true, "iso9660": true, "jfs": true, "nilfs2": true, "ntfs3": true, "overlay": true, "ramfs": true, "reiserfs": true,
	"romfs": true, "rootfs": true, "squashfs": true, "tmpfs": true, "udf": true, "vfat": true, "xfs": true, "zfs": true,
}

// maxMounts bounds a process's mountinfo.
const maxMounts = 16 << 20

// mountType finds the type of the file system of a mount in proc_pid_mountinfo(5):
// the mount's id is the first field, the type the one behind the separator, which
// stands after any number of optional fields.
func mountType(r io.Reader, id string) (string, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxMounts))
	lines.Buffer(nil, 1<<20) // paths of mounts and sources are bounded by a page each
	for lines.Scan() {
		first, rest, _ := strings.Cut(lines.Text(), " ")
		if first != id {
			continue
		}
		_, rest, ok := strings.Cut(rest, " - ")
		kind, _, _ := strings.Cut(rest, " ")
		if !ok || kind == "" {
			return "", fmt.Errorf("cannot read the mounts: mount %s has no type", id)
		}
		return kind, nil
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("cannot read the mounts: %w", err)
	}
	return "", fmt.Errorf("cannot tell on which file system it is: mount %s is not among the process's", id)
}

// mountID reads "mnt_id:" of proc_pid_fdinfo(5).
func mountID(r io.Reader) (string, error) {
	lines := bufio.NewScanner(io.LimitReader(r, 1<<16))
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "mnt_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("cannot tell on which file system it is: %w", err)
	}
	return "", errors.New("cannot tell on which file system it is: the kernel does not name its mount")
}
