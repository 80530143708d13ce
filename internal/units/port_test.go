package units_test

import (
	"github.com/aaunit/aaunit/internal/reconcile"
	"github.com/aaunit/aaunit/internal/units"
)

var _ reconcile.Systemd = (*units.Systemd)(nil)
