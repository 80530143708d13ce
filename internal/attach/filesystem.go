package attach

// localTypes are the types of file systems whose files can be looked at without asking
// anybody else: neither another machine nor a process, as FUSE does, which may never
// answer. overlay is not among them: any user may lay one over FUSE (in a user namespace,
// since Linux 5.11), so that it answers only where the administrator has mounted it.
var localTypes = map[string]bool{
	"bcachefs": true, "btrfs": true, "cramfs": true, "erofs": true, "exfat": true, "ext2": true, "ext3": true, "ext4": true, "f2fs": true,
	"hfsplus": true, "iso9660": true, "jfs": true, "nilfs2": true, "ntfs3": true, "ramfs": true, "reiserfs": true,
	"romfs": true, "rootfs": true, "squashfs": true, "tmpfs": true, "udf": true, "vfat": true, "xfs": true, "zfs": true,
}

// Overlay is the type of file systems that lie over others.
const Overlay = "overlay"

// LocalType reports whether file systems of a type always answer. A type that is not known
// counts as one that may not.
func LocalType(kind string) bool { return localTypes[kind] }
