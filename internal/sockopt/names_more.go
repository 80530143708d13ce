package sockopt

// calls says for which of the two calls a number has a name.
type calls uint8

const (
	onlySet calls = 1 << Set
	onlyGet calls = 1 << Get
	both    calls = onlySet | onlyGet
)

// named is a socket option with its name.
type named struct {
	level, option int32
	name          string
	calls         calls
	// family is set where the number has this name only for sockets of that
	// address family.
	family uint16
}

const (
	afBluetooth = 31
	afIUCV      = 32
)

// moreNames has what is in no header for programs, or in newer ones than the
// table was made from.
var moreNames = []named{
	// include/net/bluetooth/{hci,l2cap,sco,rfcomm,bluetooth}.h. The first four levels
	// are numbers that are also those of IP, TCP and UDP.
	{0, 1, "HCI_DATA_DIR", both, afBluetooth},
	{0, 2, "HCI_FILTER", both, afBluetooth},
	{0, 3, "HCI_TIME_STAMP", both, afBluetooth},
	{6, 1, "L2CAP_OPTIONS", both, afBluetooth},
	{6, 2, "L2CAP_CONNINFO", both, afBluetooth},
	{6, 3, "L2CAP_LM", both, afBluetooth},
	{17, 1, "SCO_OPTIONS", both, afBluetooth},
	{17, 2, "SCO_CONNINFO", both, afBluetooth},
	{18, 2, "RFCOMM_CONNINFO", both, afBluetooth},
	{18, 3, "RFCOMM_LM", both, afBluetooth},
	{274, 4, "BT_SECURITY", both, 0},
	{274, 7, "BT_DEFER_SETUP", both, 0},
	{274, 8, "BT_FLUSHABLE", both, 0},
	{274, 9, "BT_POWER", both, 0},
	{274, 10, "BT_CHANNEL_POLICY", both, 0},
	{274, 11, "BT_VOICE", both, 0},
	{274, 12, "BT_SNDMTU", both, 0},
	{274, 13, "BT_RCVMTU", both, 0},
	{274, 14, "BT_PHY", both, 0},
	{274, 15, "BT_MODE", both, 0},
	{274, 16, "BT_PKT_STATUS", both, 0},
	{274, 17, "BT_ISO_QOS", both, 0},
	{274, 19, "BT_CODEC", both, 0},
	{274, 20, "BT_ISO_BASE", both, 0},
	// include/net/udplite.h.
	{136, 10, "UDPLITE_SEND_CSCOV", both, 0},
	{136, 11, "UDPLITE_RECV_CSCOV", both, 0},
	// include/net/iucv/af_iucv.h.
	{277, 0x0080, "SO_IPRMDATA_MSG", both, afIUCV},
	{277, 0x1000, "SO_MSGLIMIT", both, afIUCV},
	{277, 0x0800, "SO_MSGSIZE", both, afIUCV},
	// net/ipv6/raw.c takes these of IPv6 at its own level, too.
	{255, 7, "IPV6_CHECKSUM", both, 0},
	{255, 36, "IPV6_HDRINCL", both, 0},
	// TCP_COOKIE_TRANSACTIONS went away with Linux 3.10.
	{6, 15, "TCP_COOKIE_TRANSACTIONS", both, 0},
	// Newer than Linux 6.12.
	{1, 82, "SO_RCVPRIORITY", both, 0},
	{1, 83, "SO_PASSRIGHTS", both, 0},
	{6, 44, "TCP_RTO_MAX_MS", both, 0},
}

// level is a level with its names, of which the first is what it is called.
type level struct {
	number int32
	names  []string
	family uint16
}

// levels are those of the kernel's include/linux/socket.h, and where the C library
// has another name also that. Level 1 is SOL_SOCKET and not ICMP, whose options
// are at SOL_RAW.
var levels = []level{
	{0, []string{"SOL_IP", "IPPROTO_IP"}, 0},
	{0, []string{"SOL_HCI"}, afBluetooth},
	{1, []string{"SOL_SOCKET"}, 0},
	{6, []string{"SOL_TCP", "IPPROTO_TCP"}, 0},
	{6, []string{"SOL_L2CAP"}, afBluetooth},
	{17, []string{"SOL_UDP", "IPPROTO_UDP"}, 0},
	{17, []string{"SOL_SCO"}, afBluetooth},
	{18, []string{"SOL_RFCOMM"}, afBluetooth},
	{40, []string{"AF_VSOCK", "PF_VSOCK"}, 0},
	{41, []string{"SOL_IPV6", "IPPROTO_IPV6"}, 0},
	{58, []string{"SOL_ICMPV6", "IPPROTO_ICMPV6"}, 0},
	{101, []string{"SOL_CAN_RAW"}, 0},
	{102, []string{"SOL_CAN_BCM"}, 0},
	{103, []string{"SOL_CAN_TP16"}, 0},
	{104, []string{"SOL_CAN_TP20"}, 0},
	{105, []string{"SOL_CAN_MCNET"}, 0},
	{106, []string{"SOL_CAN_ISOTP"}, 0},
	{107, []string{"SOL_CAN_J1939"}, 0},
	{132, []string{"SOL_SCTP", "IPPROTO_SCTP"}, 0},
	{136, []string{"SOL_UDPLITE", "IPPROTO_UDPLITE"}, 0},
	{255, []string{"SOL_RAW", "IPPROTO_RAW"}, 0},
	{256, []string{"SOL_IPX"}, 0},
	{257, []string{"SOL_AX25"}, 0},
	{258, []string{"SOL_ATALK"}, 0},
	{259, []string{"SOL_NETROM"}, 0},
	{260, []string{"SOL_ROSE"}, 0},
	{261, []string{"SOL_DECNET"}, 0},
	{262, []string{"SOL_X25"}, 0},
	{263, []string{"SOL_PACKET"}, 0},
	{264, []string{"SOL_ATM"}, 0},
	{265, []string{"SOL_AAL"}, 0},
	{266, []string{"SOL_IRDA"}, 0},
	{267, []string{"SOL_NETBEUI"}, 0},
	{268, []string{"SOL_LLC"}, 0},
	{269, []string{"SOL_DCCP"}, 0},
	{270, []string{"SOL_NETLINK"}, 0},
	{271, []string{"SOL_TIPC"}, 0},
	{272, []string{"SOL_RXRPC"}, 0},
	{273, []string{"SOL_PPPOL2TP"}, 0},
	{274, []string{"SOL_BLUETOOTH"}, 0},
	{275, []string{"SOL_PNPIPE"}, 0},
	{276, []string{"SOL_RDS"}, 0},
	{277, []string{"SOL_IUCV"}, 0},
	{278, []string{"SOL_CAIF"}, 0},
	{279, []string{"SOL_ALG"}, 0},
	{280, []string{"SOL_NFC"}, 0},
	{281, []string{"SOL_KCM"}, 0},
	{282, []string{"SOL_TLS"}, 0},
	{283, []string{"SOL_XDP"}, 0},
	{284, []string{"SOL_MPTCP"}, 0},
	{285, []string{"SOL_MCTP"}, 0},
	{286, []string{"SOL_SMC"}, 0},
	{287, []string{"SOL_VSOCK"}, 0},
}
