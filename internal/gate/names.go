package gate

// family is an address family by the name that AppArmor's rules use, the number
// of the kernel (include/linux/socket.h) and the constant that systemd uses.
type family struct {
	name     string
	number   uint16
	constant string
}

// families are those that AppArmor's rules can name (apparmor.d(5)).
var families = []family{
	{"unix", 1, "AF_UNIX"}, {"inet", 2, "AF_INET"}, {"ax25", 3, "AF_AX25"}, {"ipx", 4, "AF_IPX"}, {"appletalk", 5, "AF_APPLETALK"},
	{"netrom", 6, "AF_NETROM"}, {"bridge", 7, "AF_BRIDGE"}, {"atmpvc", 8, "AF_ATMPVC"}, {"x25", 9, "AF_X25"}, {"inet6", 10, "AF_INET6"},
	{"rose", 11, "AF_ROSE"}, {"netbeui", 13, "AF_NETBEUI"}, {"security", 14, "AF_SECURITY"}, {"key", 15, "AF_KEY"},
	{"netlink", 16, "AF_NETLINK"}, {"packet", 17, "AF_PACKET"}, {"ash", 18, "AF_ASH"}, {"econet", 19, "AF_ECONET"},
	{"atmsvc", 20, "AF_ATMSVC"}, {"rds", 21, "AF_RDS"}, {"sna", 22, "AF_SNA"}, {"irda", 23, "AF_IRDA"}, {"pppox", 24, "AF_PPPOX"},
	{"wanpipe", 25, "AF_WANPIPE"}, {"llc", 26, "AF_LLC"}, {"ib", 27, "AF_IB"}, {"mpls", 28, "AF_MPLS"}, {"can", 29, "AF_CAN"},
	{"tipc", 30, "AF_TIPC"}, {"bluetooth", 31, "AF_BLUETOOTH"}, {"iucv", 32, "AF_IUCV"}, {"rxrpc", 33, "AF_RXRPC"},
	{"isdn", 34, "AF_ISDN"}, {"phonet", 35, "AF_PHONET"}, {"ieee802154", 36, "AF_IEEE802154"}, {"caif", 37, "AF_CAIF"},
	{"alg", 38, "AF_ALG"}, {"nfc", 39, "AF_NFC"}, {"vsock", 40, "AF_VSOCK"}, {"kcm", 41, "AF_KCM"}, {"qipcrtr", 42, "AF_QIPCRTR"},
	{"smc", 43, "AF_SMC"}, {"xdp", 44, "AF_XDP"}, {"mctp", 45, "AF_MCTP"},
}

// types are the types of sockets that rules can name (include/linux/net.h).
var types = map[string]uint16{"stream": 1, "dgram": 2, "raw": 3, "rdm": 4, "seqpacket": 5, "packet": 10}

func typeName(n uint16) string {
	for name, t := range types {
		if t == n {
			return name
		}
	}
	return "of any type"
}

// capabilities by number (include/uapi/linux/capability.h).
var capabilities = []string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "linux_immutable",
	"net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot",
	"sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease",
	"audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read",
	"perfmon", "bpf", "checkpoint_restore",
}
