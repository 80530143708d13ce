package sockopt

// Words says what is felt when setting an option is refused, as half a sentence
// that goes on after "…was refused 41 times:". It is "" for all but those whose
// refusal hurts most; most programs do not look whether the call failed, so what
// shows is what the option was for.
func Words(o Option) string { return words[o] }

var words = map[Option]string{
	{6, 1}:  "small writes wait for the other side's acknowledgement, which shows as latency of tens of milliseconds",
	{6, 3}:  "headers and data leave in separate small packets, which shows as more packets and slower transfers of many small pieces",
	{6, 4}:  "a connection that is idle is probed only after the system's default, two hours, so a peer or firewall that went away is noticed late",
	{6, 5}:  "probes of a silent peer come at the system's pace, 75 seconds apart, so a dead connection hangs for minutes",
	{6, 6}:  "a silent peer is given the system's nine probes before it counts as gone, so a dead connection hangs for minutes",
	{6, 12}: "acknowledgements are delayed as the kernel sees fit, which shows as up to 40 milliseconds on each exchange with a peer that waits for them",
	{6, 13}: "the connection keeps the system's congestion control (see net.ipv4.tcp_congestion_control), which shows as other throughput on long or lossy links",
	{6, 18}: "data that nobody acknowledges is retried for about a quarter of an hour, so a connection to a peer that vanished hangs for as long",
	{6, 23}: "clients cannot send data with their first packet, which costs one more round trip on each new connection",
	{1, 2}:  "a restart fails with \"Address already in use\" for up to a minute, while connections of the former run are still timing out",
	{1, 7}:  "the send buffer stays at the system's size, which limits throughput on fast links with long round trips",
	{1, 8}:  "the receive buffer stays at the system's size, which limits throughput on long round trips, and bursts of datagrams are dropped",
	{1, 9}:  "connections are never probed, so a peer that vanished without a word is noticed only when something is sent to it",
	{1, 12}: "packets carry no priority, so queueing disciplines and VLANs treat them like all others",
	{1, 13}: "closing a connection does not wait for its data, or does not reset it, as the program meant: data may be lost, or sockets linger in TIME-WAIT",
	{1, 15}: "a second worker cannot bind to the same port, which shows as \"Address already in use\" or as one worker that does all the work",
	{1, 36}: "packets are not marked, so rules of the firewall or of policy routing that go by the mark do not apply: traffic may take another way",
	{41, 26}: "the socket listens on IPv4 too, or on IPv6 alone, as the system has it, which shows as \"Address already in use\" beside an IPv4 " +
		"socket on the same port, or as clients that cannot connect",
}
