package machine

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// unusedAfter is how long an image or a warm state that nobody boots is kept.
const unusedAfter = 7 * 24 * time.Hour

// cache is the directory in which everything is kept:
//
//	keys/                    the ssh keys of the user and of every guest
//	images/SUITE-HASH/       disk.raw, vmlinuz, initrd.img
//	warm/SUITE-HASH/         disk.qcow2 on the image's disk.raw, and state
//	accel-HASH               what the probe for KVM found
//	runs/NAME/               a guest that runs: its overlay, console and lock
//	*.lock                   held while something is built
//
// Directories under images and warm are made under another name and renamed
// when complete. Their file "used" is locked, shared, by each guest that uses
// them, and its time is that of the last use.
type cache struct {
	dir string
}

// openCache opens the directory AAUNIT_VM_CACHE, or aaunit/vm in the user's
// cache directory, and makes it if it is not there.
func openCache() (cache, error) {
	dir := os.Getenv("AAUNIT_VM_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return cache{}, fmt.Errorf("cannot find the cache directory, set AAUNIT_VM_CACHE: %w", err)
		}
		dir = filepath.Join(user, "aaunit", "vm")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return cache{}, fmt.Errorf("cannot use the cache directory: %w", err)
	}
	c := cache{dir: dir}
	for _, sub := range []string{"keys", "images", "warm", "runs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return cache{}, fmt.Errorf("cannot make the cache directory: %w", err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "keys"), 0o700); err != nil {
		return cache{}, fmt.Errorf("cannot protect the ssh keys: %w", err)
	}
	return c, nil
}

func (c cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// lock takes the lock of that name, and waits for whoever has it. The returned
// function gives it back.
func (c cache) lock(name string) (unlock func(), err error) {
	return flock(c.path(name+".lock"), unix.LOCK_EX)
}

// use marks a directory under images or warm as used from now on until the
// returned function is called.
func (c cache) use(dir string) (done func(), err error) {
	name := filepath.Join(dir, "used")
	done, err = flock(name, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if err := os.Chtimes(name, now, now); err != nil {
		done()
		return nil, fmt.Errorf("cannot mark the image as used: %w", err)
	}
	return done, nil
}

// prune removes from images and warm what was not used for a while, what a
// build that was killed has left, and the directories of guests that are gone.
func (c cache) prune() {
	c.removeUnlocked("runs", "lock", 0)
	c.removeUnlocked("images", "used", unusedAfter)
	c.removeUnlocked("warm", "used", unusedAfter)
}

func (c cache) removeUnlocked(sub, lockName string, age time.Duration) {
	entries, err := os.ReadDir(c.path(sub))
	if err != nil {
		return
	}
	for _, e := range entries {
		dir := c.path(sub, e.Name())
		info, err := os.Stat(filepath.Join(dir, lockName))
		if errors.Is(err, fs.ErrNotExist) {
			// Being made, unless it is old.
			if info, err = os.Stat(dir); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
				os.RemoveAll(dir)
			}
			continue
		}
		if err != nil || time.Since(info.ModTime()) < age {
			continue
		}
		unlock, err := flock(filepath.Join(dir, lockName), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue
		}
		os.RemoveAll(dir)
		unlock()
	}
}

// flock opens (and makes) the file and locks it. The lock ends with the
// returned function, or with the process.
func flock(name string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// keys are one key pair that guests know their user by, and one that the user
// knows guests by.
type keys struct {
	user     ssh.Signer
	host     ssh.PublicKey
	userPath string // private key; the public one has .pub
	hostPath string
}

// keys reads the ssh keys, and makes them at the first time.
func (c cache) keys() (keys, error) {
	unlock, err := c.lock("keys")
	if err != nil {
		return keys{}, err
	}
	defer unlock()

	k := keys{userPath: c.path("keys", "user"), hostPath: c.path("keys", "host")}
	if k.user, err = readOrMakeKey(k.userPath); err != nil {
		return keys{}, err
	}
	host, err := readOrMakeKey(k.hostPath)
	if err != nil {
		return keys{}, err
	}
	k.host = host.PublicKey()
	return k, nil
}

func readOrMakeKey(path string) (ssh.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = makeKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot get the ssh key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read the ssh key %s: %w", path, err)
	}
	return signer, nil
}

func makeKey(path string) ([]byte, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "aaunit-vm")
	if err != nil {
		return nil, err
	}
	sshPublic, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(sshPublic), 0o644); err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	return text, os.WriteFile(path, text, 0o600)
}

// authorized is the public key as a line of authorized_keys, without its end.
func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}
