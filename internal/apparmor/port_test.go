package apparmor_test

import (
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor"
	"github.com/aaunit/aaunit/internal/reconcile"
)

// The loop's port is met without importing it: adapters know the core alone.
func TestMeetsThePort(t *testing.T) {
	var _ reconcile.AppArmor = apparmor.New(apparmor.Options{})
}
