package cli

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// The part of SARIF 2.1.0 (OASIS, "Static Analysis Results Interchange Format")
// that code review tools read.

type sarifLog struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool    sarifTool     `json:"tool"`
	Results []sarifResult `json:"results"`
}

type sarifTool struct {
	Driver sarifDriver `json:"driver"`
}

type sarifDriver struct {
	Name    string      `json:"name"`
	Version string      `json:"version,omitempty"`
	Rules   []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID    string    `json:"id"`
	Short sarifText `json:"shortDescription"`
	Full  sarifText `json:"fullDescription"`
}

type sarifText struct {
	Text string `json:"text"`
}

type sarifResult struct {
	RuleID    string          `json:"ruleId"`
	RuleIndex int             `json:"ruleIndex"`
	Level     string          `json:"level"` // error, warning, note
	Message   sarifText       `json:"message"`
	Locations []sarifLocation `json:"locations,omitempty"`
}

type sarifLocation struct {
	Physical sarifPhysical `json:"physicalLocation"`
}

type sarifPhysical struct {
	Artifact sarifArtifact `json:"artifactLocation"`
	Region   *sarifRegion  `json:"region,omitempty"`
}

type sarifArtifact struct {
	URI string `json:"uri"`
}

type sarifRegion struct {
	StartLine   int        `json:"startLine"`
	StartColumn int        `json:"startColumn,omitempty"`
	Snippet     *sarifText `json:"snippet,omitempty"`
}

// sarif puts what a check found into that form. What is found of several units is
// there once.
func (a *app) sarif(out []attach.Outcome) sarifLog {
	run := sarifRun{Tool: sarifTool{sarifDriver{Name: "aaunitctl", Version: a.Version, Rules: []sarifRule{}}}, Results: []sarifResult{}}
	said := map[attach.Reason]bool{}
	add := func(level string, r attach.Reason) {
		if said[r] {
			return
		}
		said[r] = true
		index := slices.IndexFunc(run.Tool.Driver.Rules, func(s sarifRule) bool { return s.ID == string(r.Code) })
		if index < 0 {
			index = len(run.Tool.Driver.Rules)
			run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{string(r.Code), sarifText{r.Code.Title()}, sarifText{r.Code.Explanation()}})
		}
		text := r.Detail
		if r.Next != "" {
			text += " Next: " + r.Next
		}
		run.Results = append(run.Results, sarifResult{string(r.Code), index, level, sarifText{text}, sarifPlace(r)})
	}
	for _, o := range out {
		bad, notes := slices.Clone(o.Reasons), slices.Clone(o.Notes)
		if o.Plan != nil {
			bad, notes = append(bad, o.Plan.Refusals...), append(notes, o.Plan.Warnings...)
		}
		for _, r := range bad {
			add("error", r)
		}
		for _, f := range o.Findings {
			add(f.Severity.String(), f.Reason)
		}
		for _, r := range notes {
			add("warning", r)
		}
	}
	return sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}}
}

// sarifPlace reads "file:line"; what is no path of a file has no place.
func sarifPlace(r attach.Reason) []sarifLocation {
	if !strings.HasPrefix(r.Where, "/") {
		return nil
	}
	p := sarifPhysical{Artifact: sarifArtifact{r.Where}}
	if i := strings.LastIndexByte(r.Where, ':'); i > 0 {
		if line, err := strconv.Atoi(r.Where[i+1:]); err == nil && line > 0 {
			p.Artifact.URI, p.Region = r.Where[:i], &sarifRegion{StartLine: line}
		}
	}
	if e := r.Excerpt; p.Region != nil && e.Text != "" && e.Line == p.Region.StartLine {
		p.Region.StartColumn, p.Region.Snippet = max(0, e.Column), &sarifText{e.Text}
	}
	p.Artifact.URI = (&url.URL{Scheme: "file", Path: p.Artifact.URI}).String()
	return []sarifLocation{{p}}
}
