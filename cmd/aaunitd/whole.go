//go:build !crash

package main

import "github.com/aaunit/aaunit/internal/reconcile"

// breakable is for builds with the tag crash, which tests kill on the way. This
// one has no such point.
func breakable(o reconcile.Options) reconcile.Options { return o }
