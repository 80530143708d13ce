// Package journal has the words in which aaunitd writes to systemd's journal:
// message ids, each with an entry in packaging/catalog/aaunit.catalog that
// "journalctl -x" shows, and the names of fields, which scripts and log
// collectors match on. Both are interfaces: an id is never given a new meaning.
package journal

// MessageID is a value of MESSAGE_ID=, see sd_journal_print(3) and
// https://systemd.io/CATALOG.
type MessageID string

// The messages. All but the last three are about one unit, and carry FieldUnit.
const (
	// MsgAttached: a unit was attached, came up confined and stayed healthy.
	MsgAttached MessageID = "5e4b91e0b3f94c8d8753558faf79f5d7"
	// MsgAttachUndone: an attach failed, and the unit is as it was before.
	MsgAttachUndone MessageID = "153c1c59ab30450eae301f7e57afa52b"
	// MsgAttachHeld: an attach failed, and OnFailedAttach= says not to undo it.
	MsgAttachHeld MessageID = "84bdff404da444d696f65e567a484e51"
	// MsgAttachRefused: nothing was changed, since something speaks against it.
	MsgAttachRefused MessageID = "89471ad191b6418aaec8b8551d5e7468"
	// MsgDetached: an attachment was withdrawn and taken back.
	MsgDetached MessageID = "a0f126abce624fcfbc0729a63efb344e"

	// MsgConfined, MsgNotConfined and MsgUnknown are the verdicts on a start.
	MsgConfined    MessageID = "694428dcbf7c4da784559d67bdd77f04"
	MsgNotConfined MessageID = "7e9047bf33cc400890bfdc8d8079bd80"
	MsgUnknown     MessageID = "8fc5d464fabf41c28422be21a2aff012"
	// MsgStopped: the unit was not confined, and OnViolation=stop says to stop it.
	MsgStopped MessageID = "ba42630a5fa042d4aeb17c902390f6f8"

	// MsgDropInHealed: a drop-in of ours was changed or removed, and put back.
	MsgDropInHealed MessageID = "6799ea09cd0e48f7b6e8e3bac109754e"

	// MsgPolicyHealed: somebody had replaced or removed the accepted policy, and
	// it was put back.
	MsgPolicyHealed MessageID = "9b3f0d7d44f0466f96a5e1b6f0bb4c6a"

	// MsgSocketsHealed: somebody had taken off what holds a unit's socket options to
	// their list, or changed it, and it was put back.
	MsgSocketsHealed MessageID = "b5137fff76fc4ad4bb0570e18df81368"

	// MsgPolicyUndone: a changed policy went live, the unit did not stay well under
	// it, and the policy that was accepted before is live again.
	MsgPolicyUndone MessageID = "4f1c6e0b8d5a4b0f9d27c3a8e6f1b254"

	// MsgEvidence: what the verdict on a start rests on was recorded.
	MsgEvidence MessageID = "0090d1c078294d4b943df55f4ef94dec"

	// MsgPaused: somebody had a unit left alone for a time.
	MsgPaused MessageID = "3fd42d28ab6041afbb650b98f0a79721"
	// MsgResumed: somebody ended a pause before its time.
	MsgResumed MessageID = "81adab407d5f49878c47eac2041c843b"
	// MsgPauseOver: the time of a pause is over.
	MsgPauseOver MessageID = "7dc9b5e04b774a7eabb3c93d88eb05f2"

	// MsgAttachmentBad: an attachment file is not used.
	MsgAttachmentBad MessageID = "6086f7b4ab834f9a8b6963ff9d310756"
	// MsgBusLost and MsgBusBack: nothing was heard of systemd in between.
	MsgBusLost MessageID = "0aec8b8344954640a15ecc1aefb35425"
	MsgBusBack MessageID = "8f26490dc02b45cfba75b43e581325c8"
)

// The fields, beside those of systemd.journal-fields(7).
const (
	// FieldMessageID holds a MessageID.
	FieldMessageID = "MESSAGE_ID"
	// FieldUnit is the unit that the message is about.
	FieldUnit = "UNIT"
	// FieldObjectUnit holds the same: by it "journalctl -u UNIT" shows a message
	// of another service, provided that one runs as root (journalctl's
	// add_matches_for_unit).
	FieldObjectUnit = "OBJECT_SYSTEMD_UNIT"
	// FieldInvocation is the start of the unit that the message is about.
	FieldInvocation = "AAUNIT_INVOCATION_ID"
	// FieldProfile is the profile's internal name.
	FieldProfile = "AAUNIT_PROFILE"
	// FieldVerdict is confined, not-confined or unknown.
	FieldVerdict = "AAUNIT_VERDICT"
	// FieldReason is the code of the first reason, see aaunit-reasons(7).
	FieldReason = "AAUNIT_REASON"
	// FieldFile is the file that the message is about, an attachment or a drop-in.
	FieldFile = "AAUNIT_FILE"
	// FieldEvidence is the SHA-256 of a record of evidence.
	FieldEvidence = "AAUNIT_EVIDENCE"
	// FieldBy is the user who asked for what the message is about.
	FieldBy = "AAUNIT_BY"
)
