abi <abi/3.0>,
include <tunables/global>

profile myagent {
  include <abstractions/base>

  network inet stream,
  network inet6 stream,

  /usr/local/bin/myagent mrix,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
  signal (send, receive) peer=myagent,
}
