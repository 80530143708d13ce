//go:build vm && long

package apparmor

// extraProfiles is that one of so many of the profiles that no package enables
// is compiled and asked about: compiling takes most of the time.
const extraProfiles = 1
