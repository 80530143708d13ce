abi <abi/3.0>,
include <tunables/global>

profile other {
  include <abstractions/base>


  /usr/local/bin/other mrix,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
  signal (send, receive) peer=other,
}
