package bus

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

// The handshake comes before the messages; D-Bus specification, "Authentication
// Protocol". godbus knows the client's side of it, in four turns, and no server's. Here
// both ends hold it themselves, the client in one turn, and godbus holds its own with a
// stream that says what it wants to hear (rehearse).

const (
	maxLine  = 1 << 10 // bytes in a line of the handshake
	maxLines = 16      // and lines of a client
)

// errHandshake is that the other end does not hold the handshake.
var errHandshake = errors.New("the other end does not speak D-Bus")

// introduce is the client's side.
func (s *stream) introduce() error {
	// The number of the user, not the name: looking one up needs more than a static
	// binary has.
	if _, err := io.WriteString(s.sock, "\x00AUTH EXTERNAL "+identity(os.Geteuid())+"\r\n"); err != nil {
		return err
	}
	line, err := s.line()
	if err != nil {
		return err
	}
	switch word, guid, _ := bytes.Cut(line, []byte(" ")); string(word) {
	case "OK":
		guid, _, _ = bytes.Cut(guid, []byte(" "))
		s.guid = string(guid)
	case "REJECTED":
		return fmt.Errorf("user %d was rejected in the handshake", os.Geteuid())
	default:
		return fmt.Errorf("%w: it answered AUTH with %q", errHandshake, line)
	}
	_, err = io.WriteString(s.sock, "BEGIN\r\n")
	return err
}

// welcome is the server's side, for a client of which the kernel says whose it is.
func (s *stream) welcome(uid int) error {
	zero, err := s.in.ReadByte()
	if err != nil {
		return err
	}
	if zero != 0 {
		return fmt.Errorf("%w: it began with %#x", errHandshake, zero)
	}
	var id [16]byte
	rand.Read(id[:])
	s.guid = hex.EncodeToString(id[:])
	ok := "OK " + s.guid
	asked, known := false, false // for a response, and whose it is
	for range maxLines {
		line, err := s.line()
		if err != nil {
			return err
		}
		answer := "ERROR"
		word, rest, _ := bytes.Cut(line, []byte(" "))
		switch string(word) {
		case "AUTH":
			mechanism, response, given := bytes.Cut(rest, []byte(" "))
			asked = string(mechanism) == "EXTERNAL"
			known = asked && given && string(response) == identity(uid)
			switch {
			case known:
				answer = ok
			case asked && !given:
				answer = "DATA"
			default:
				answer, asked = "REJECTED EXTERNAL", false
			}
		case "DATA":
			// "" is who the kernel says it is.
			known = asked && (len(rest) == 0 || string(rest) == identity(uid))
			answer, asked = "REJECTED EXTERNAL", false
			if known {
				answer = ok
			}
		case "CANCEL":
			answer, asked, known = "REJECTED EXTERNAL", false, false
		case "BEGIN":
			if !known {
				return fmt.Errorf("%w: it began before it was let in", errHandshake)
			}
			return nil
		}
		if _, err := io.WriteString(s.sock, answer+"\r\n"); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: it does not begin", errHandshake)
}

// identity is a user as the mechanism EXTERNAL has it.
func identity(uid int) string { return hex.EncodeToString([]byte(strconv.Itoa(uid))) }

// line reads a line of the handshake, without its end.
func (s *stream) line() ([]byte, error) {
	line, err := s.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLine {
		return nil, fmt.Errorf("%w: it sent a line of over %d bytes", errHandshake, maxLine)
	}
	if err != nil {
		return nil, midway(err)
	}
	return bytes.TrimRight(line, "\r\n"), nil
}

// rehearse answers what godbus writes in its own handshake, each line by itself.
func (s *stream) rehearse(p []byte) error {
	switch string(p) {
	case "\x00":
	case "AUTH\r\n":
		s.ready = append(s.ready, "REJECTED EXTERNAL\r\n"...)
	case "AUTH EXTERNAL\r\n":
		s.ready = append(s.ready, "OK "+s.guid+"\r\n"...)
	case "BEGIN\r\n":
		s.framed = true
	default:
		return errors.New("cannot tell where the handshake ends; was it changed in godbus?")
	}
	return nil
}
