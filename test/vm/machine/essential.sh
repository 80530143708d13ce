# Run by mmdebstrap after the essential packages, before all others, outside the
# new root, whose path is $1.
set -eu
# A small initrd: it is unpacked under emulation at every boot.
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools"
echo 'MODULES=list' >"$1/etc/initramfs-tools/conf.d/aaunit-vm"
printf '%s\n' virtio_pci virtio_blk ext4 >"$1/etc/initramfs-tools/modules"
