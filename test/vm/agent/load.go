package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// loadClients are how many requests are under way at a time.
const loadClients = 4

// httpLoad makes so many requests by HTTP, each on a connection of its own, which is
// where Go's library sets options, on both sides. This process is server and client.
func httpLoad(requests int) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	page := bytes.Repeat([]byte("page"), 1024)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(page) })}
	go server.Serve(l)
	defer server.Close()

	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	url := "http://" + l.Addr().String() + "/"
	get := func() error {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		n, err := io.Copy(io.Discard, response.Body)
		if err == nil && n != int64(len(page)) {
			err = fmt.Errorf("cannot read %s: %d bytes came with %s", url, n, response.Status)
		}
		return err
	}
	var taken atomic.Int64
	var clients sync.WaitGroup
	errs := make([]error, loadClients)
	begun := time.Now()
	for i := range loadClients {
		clients.Go(func() {
			for errs[i] == nil && taken.Add(1) <= int64(requests) {
				errs[i] = get()
			}
		})
	}
	clients.Wait()
	return time.Since(begun), errors.Join(errs...)
}

// sockLoop sets SO_KEEPALIVE so many times on one socket.
func sockLoop(calls int) (took time.Duration, err error) {
	err = withSocket(unix.AF_INET, unix.SOCK_STREAM, func(fd int) error {
		begun := time.Now()
		for range calls {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		took = time.Since(begun)
		return nil
	})
	return took, err
}
