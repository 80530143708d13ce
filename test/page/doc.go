// Package page looks at the report's page in a real browser: Chromium without a
// screen, on a phone and on a desk, light and dark, without JavaScript, and in print.
// What it sees is left in build/page. "make page" runs it.
package page
