// Agent is a small program to be confined: it talks TCP, uses /tmp and forks a
// helper, as the self-hosted agents do that aaunit is for. Tests and the demo
// run it as a service.
//
// What its flags ask for is done at the start, in their order below; the agent
// ends with status 1 when something of it fails, unless -keep-going is given.
// Then it tells systemd that it is ready, if systemd wants to know.
//
// On -listen it answers requests, one a line, with a line "ok …" or "error …":
//
//	ping                        ok pong
//	pid                         ok PID
//	read PATH                   reads the file: ok and the number of bytes
//	write PATH                  writes the file
//	exec PATH ARG…              runs the program: ok and its quoted output
//	spawn PATH ARG…             starts the program: ok and its PID
//	helper                      forks another helper: ok and its PID
//	connect ADDRESS             makes a TCP connection, or one to the unix socket
//	                            with this path, and closes it
//	socket FAMILY TYPE          makes a socket (numbers) and closes it
//	setsockopt LEVEL NAME VALUE on a new TCP socket (numbers)
//	getsockopt LEVEL NAME       of a new TCP socket: ok VALUE
//	httpload REQUESTS           makes HTTP requests to itself, each on a new
//	                            connection: ok and how many nanoseconds it took
//	sockloop CALLS              of setsockopt on one socket: the same
//	exit STATUS                 ends
//
// With -try it is no service: it does the operations that it reads from standard
// input, lines of JSON such as {"op":"rename","path":"/a","to":"/b"}, prints the
// number of the error of each, 0 for none, and ends.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal("agent: ", err)
	}
}

func run() error {
	read := flag.String("read", "", "read this `file`")
	tmp := flag.String("tmp", "", "write this `file`, in /tmp say, and again each second")
	listen := flag.String("listen", "", "answer requests on this TCP `address`")
	connect := flag.String("connect", "", "make a connection to this `address`, a path for a unix socket")
	web := flag.String("web", "", "answer HTTPS on this `address`")
	get := flag.String("get", "", "read this `URL` by HTTP/2, on new connections, and end")
	getTimes := flag.Int("get-times", 1, "read it so many `times`")
	helper := flag.Bool("helper", false, "fork a helper, which is this program again")
	threads := flag.Int("threads", 0, "start so many `threads` that wait")
	program := flag.String("exec", "", "start this `program` and let it run")
	sleepTime := flag.Duration("sleep", 0, "wait so long before being ready")
	exitAfter := flag.Duration("exit-after", 0, "end so long after being ready")
	status := flag.Int("exit-status", 0, "the status to end with after -exit-after")
	keepGoing := flag.Bool("keep-going", false, "only tell what fails")
	asHelper := flag.Bool("as-helper", false, "be the helper: wait for the end of standard input")
	tries := flag.Bool("try", false, "do the operations on standard input, one a line, and say how each went")
	flag.Parse()

	if *asHelper {
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	if *tries {
		return tryAll(os.Stdin, os.Stdout)
	}

	for _, step := range []struct {
		wanted bool
		do     func() error
	}{
		{*read != "", func() error { _, err := os.ReadFile(*read); return err }},
		{*tmp != "", func() error { return keepWriting(*tmp) }},
		{*listen != "", func() error { return serve(*listen) }},
		{*connect != "", func() error { return dial(*connect) }},
		{*web != "", func() error { return serveWeb(*web) }},
		{*get != "", func() error { return getWeb(*get, *getTimes) }},
		{*helper, func() error { _, err := startHelper(); return err }},
		{*threads > 0, func() error { startThreads(*threads); return nil }},
		{*program != "", func() error { _, err := spawn(*program); return err }},
	} {
		if !step.wanted {
			continue
		}
		if err := step.do(); err != nil {
			if !*keepGoing {
				return err
			}
			log.Print("agent: ", err)
		}
	}

	if *get != "" {
		return nil
	}
	time.Sleep(*sleepTime)
	if err := notify("READY=1"); err != nil {
		return err
	}
	log.Print("agent: ready")

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	var timer <-chan time.Time
	if *exitAfter > 0 {
		timer = time.After(*exitAfter)
	}
	select {
	case <-ended:
	case <-timer:
		os.Exit(*status)
	}
	return nil
}

// keepWriting writes the file now, and every second.
func keepWriting(path string) error {
	if err := write(path); err != nil {
		return err
	}
	go func() {
		for range time.Tick(time.Second) {
			if err := write(path); err != nil {
				log.Print("agent: ", err)
			}
		}
	}()
	return nil
}

func write(path string) error {
	return os.WriteFile(path, []byte(time.Now().String()+"\n"), 0o600)
}

func dial(address string) error {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	conn, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// startHelper forks this program. The helper ends with us, when its standard
// input does.
func startHelper() (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, "-as-helper")
	// Held open until our end.
	if _, err := cmd.StdinPipe(); err != nil {
		return 0, err
	}
	return start(cmd)
}

// startThreads starts threads and waits until all are there.
func startThreads(n int) {
	var there sync.WaitGroup
	for range n {
		there.Add(1)
		go func() {
			runtime.LockOSThread()
			there.Done()
			select {} // the thread is kept for this goroutine
		}()
	}
	there.Wait()
}

func spawn(path string, args ...string) (pid int, err error) {
	return start(exec.Command(path, args...))
}

func start(cmd *exec.Cmd) (pid int, err error) {
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go cmd.Wait()
	return cmd.Process.Pid, nil
}

func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				log.Print("agent: ", err)
				time.Sleep(time.Second)
				continue
			}
			go answerAll(conn)
		}
	}()
	return nil
}

func answerAll(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		text, err := answer(words[0], words[1:])
		if err != nil {
			fmt.Fprintln(conn, "error", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Fprintln(conn, strings.TrimSpace("ok "+text))
		}
	}
}

// answer does what a request asks for.
func answer(verb string, args []string) (string, error) {
	requests := map[string]struct {
		least int // arguments
		do    func() (string, error)
	}{
		"ping": {0, func() (string, error) { return "pong", nil }},
		"pid":  {0, func() (string, error) { return strconv.Itoa(os.Getpid()), nil }},
		"read": {1, func() (string, error) {
			text, err := os.ReadFile(args[0])
			return strconv.Itoa(len(text)), err
		}},
		"write": {1, func() (string, error) { return "", write(args[0]) }},
		"exec": {1, func() (string, error) {
			out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %q", err, out)
			}
			return strconv.Quote(string(out)), err
		}},
		"spawn": {1, func() (string, error) {
			pid, err := spawn(args[0], args[1:]...)
			return strconv.Itoa(pid), err
		}},
		"helper": {0, func() (string, error) {
			pid, err := startHelper()
			return strconv.Itoa(pid), err
		}},
		"connect": {1, func() (string, error) { return "", dial(args[0]) }},
		"socket": {2, func() (string, error) {
			n, err := numbers(args)
			if err != nil {
				return "", err
			}
			return "", withSocket(n[0], n[1], func(int) error { return nil })
		}},
		"setsockopt": {3, func() (string, error) {
			n, err := numbers(args)
			if err != nil {
				return "", err
			}
			return "", withSocket(unix.AF_INET, unix.SOCK_STREAM, func(fd int) error {
				return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, n[0], n[1], n[2]))
			})
		}},
		"getsockopt": {2, func() (string, error) {
			n, err := numbers(args)
			if err != nil {
				return "", err
			}
			var value int
			err = withSocket(unix.AF_INET, unix.SOCK_STREAM, func(fd int) (err error) {
				value, err = unix.GetsockoptInt(fd, n[0], n[1])
				return os.NewSyscallError("getsockopt", err)
			})
			return strconv.Itoa(value), err
		}},
		"httpload": {1, func() (string, error) { return timeOf(httpLoad, args) }},
		"sockloop": {1, func() (string, error) { return timeOf(sockLoop, args) }},
		"exit": {1, func() (string, error) {
			n, err := numbers(args)
			if err != nil {
				return "", err
			}
			os.Exit(n[0])
			return "", nil
		}},
	}
	r, ok := requests[verb]
	if !ok {
		return "", fmt.Errorf("cannot do %q", verb)
	}
	if len(args) < r.least {
		return "", fmt.Errorf("cannot %s: it takes %d arguments", verb, r.least)
	}
	return r.do()
}

func numbers(args []string) ([]int, error) {
	var n []int
	for _, a := range args {
		i, err := strconv.Atoi(a)
		if err != nil {
			return nil, err
		}
		n = append(n, i)
	}
	return n, nil
}

// timeOf says how long something took that is done as often as is asked for.
func timeOf(do func(times int) (time.Duration, error), args []string) (string, error) {
	n, err := numbers(args)
	if err != nil {
		return "", err
	}
	took, err := do(n[0])
	return strconv.FormatInt(took.Nanoseconds(), 10), err
}

func withSocket(family, typ int, use func(fd int) error) error {
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	return errors.Join(use(fd), unix.Close(fd))
}

// notify tells systemd something (sd_notify(3)), if it wants to know.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", name)
	if err != nil {
		return fmt.Errorf("cannot tell systemd: %w", err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
