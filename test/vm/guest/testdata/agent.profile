abi <abi/3.0>,
include <tunables/global>

profile vm-agent /usr/local/bin/vm-agent {
  include <abstractions/base>

  network inet stream,
  network inet6 stream,

  /usr/local/bin/vm-agent mrix,
  /etc/hostname r,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
  signal (send, receive) peer=vm-agent,
}
