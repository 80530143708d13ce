//go:build vm && !long

package apparmor

const extraProfiles = 6
