package inotify

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// An error is on its way when a directory is added, and when all ends, and nobody reads it.
func TestAnErrorHoldsUpNothing(t *testing.T) {
	dir := t.TempDir()
	moved, away := filepath.Join(dir, "moved"), filepath.Join(dir, "away")
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(moved, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(moved); err != nil {
		t.Fatal(err)
	}
	// fsnotify stands at this event until it is read. By then the directory that was moved
	// has gone with its watch, so that ending the watch fails.
	if err := os.WriteFile(filepath.Join(moved, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Remove(filepath.Join(moved, "x")), os.Rename(moved, away), os.Remove(away)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for range w.Events {
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			if err := w.Add(dir); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
		w.Close()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it is stuck")
	}
	select {
	case <-w.Lost:
	default:
		t.Error("that there was an error is not told, so this test shows nothing")
	}
}
