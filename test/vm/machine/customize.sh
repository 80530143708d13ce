# Run by mmdebstrap outside the new root, whose path is $1.
set -eu
root=$1

# A machine id of its own: with none, systemd would take this for a first boot
# and enable every unit again.
chroot "$root" systemd-machine-id-setup
echo aaunit-vm >"$root/etc/hostname"
cat >"$root/etc/hosts" <<HOSTS
127.0.0.1 localhost aaunit-vm
::1 localhost
HOSTS
echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"

# The only way in. Without PAM a connection starts no user manager.
chmod 600 "$root/etc/ssh/ssh_host_ed25519_key"
rm -f "$root"/etc/ssh/ssh_host_rsa_key* "$root"/etc/ssh/ssh_host_ecdsa_key*
chmod 700 "$root/root/.ssh"
chmod 600 "$root/root/.ssh/authorized_keys"
cat >"$root/etc/ssh/sshd_config.d/aaunit-vm.conf" <<SSHD
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
HostKey /etc/ssh/ssh_host_ed25519_key
MaxSessions 100
SSHD

cat >"$root/etc/systemd/system/vm-network.service" <<UNIT
[Unit]
Description=The address of QEMU's user network
DefaultDependencies=no
After=systemd-udev-trigger.service sys-subsystem-net-devices-eth0.device
Requires=sys-subsystem-net-devices-eth0.device
Before=network.target
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip link set lo up
ExecStart=/sbin/ip link set eth0 up
ExecStart=/sbin/ip address replace 10.0.2.15/24 dev eth0
ExecStart=/sbin/ip route replace default via 10.0.2.2

[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl enable vm-network.service

mkdir -p "$root/var/log/journal"

# An emulated machine beside busy ones takes long to find its devices.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nDefaultDeviceTimeoutSec=10min\n' >"$root/etc/systemd/system.conf.d/aaunit-vm.conf"

# What runs by the clock would run whenever the clock is set after a warm start.
for timer in "$root"/lib/systemd/system/*.timer; do
	case ${timer##*/} in
	systemd-tmpfiles-clean.timer) ;;
	*) chroot "$root" systemctl disable "${timer##*/}" >/dev/null 2>&1 || true ;;
	esac
done
chroot "$root" systemctl mask serial-getty@ttyS0.service getty@tty1.service \
	e2scrub_reap.service systemd-networkd-wait-online.service
for service in $SERVICES; do
	chroot "$root" systemctl disable "$service.service"
done

# Profiles that nobody here wrote, as material: unpacked and not installed, so
# that they are no part of what the guest loads.
corpus=$root/usr/share/aaunit-vm/profiles
mkdir -p "$corpus"
(
	cd "$corpus"
	APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -q download $CORPUS
	for package in *.deb; do
		dpkg-deb -x "$package" .
		rm "$package"
	done
	rm -rf usr/share/doc usr/share/man
)
