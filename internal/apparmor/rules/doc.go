// Package rules reads the text of AppArmor profiles, so that an answer about the
// compiled policy can be led back to the line that causes it. It touches no
// file: whoever asks brings the texts.
//
// The compiled policy decides, and package policydb reads it. The text only says
// where: which rule, of which file, lets a witness through. So what is not
// understood here is said to be so, in Grant.May, and is never left out.
//
// What the parser does to a text before it compiles it is done here as well, as
// parser 3.0 and later do it:
//
//   - an include is put in place, once for each profile;
//   - variables are put in after everything was read, so that a later "+=" counts
//     for rules before it, and "@{X}" with several values is "{a,b}";
//   - of "if" the branch that holds is taken, where the condition is a boolean
//     variable or "defined";
//   - an alias adds a rule for each one whose path begins with it;
//   - "ix" maps as executable too, "w" appends too;
//   - "change_profile" and hats bring rules for /proc/…/attr with them;
//   - "deny" takes single permissions out of what other rules allow.
package rules
