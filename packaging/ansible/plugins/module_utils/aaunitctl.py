# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

"""What the modules have in common: they ask aaunitctl, and say what it said."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import os
import tempfile

from ansible.module_utils.common.text.converters import to_bytes, to_text

NOT_CONFINED = 3
UNKNOWN = 5

# aaunitctl is in /usr/bin; root's PATH over ssh may hold little else.
PLACES = ['/usr/local/bin', '/usr/bin']


class Aaunitctl(object):
    """Runs aaunitctl for a module. Whatever it cannot do ends the module."""

    def __init__(self, module):
        self.module = module
        self.path = module.get_bin_path('aaunitctl', opt_dirs=PLACES)
        if self.path is None:
            module.fail_json(
                msg='cannot find aaunitctl on this host: install the package aaunit first, '
                    'as the role aaunit.core.aaunit does')

    def ask(self, *args, **kwargs):
        """Gives the exit status and the JSON document of one command.

        An error that is about no unit, such as a daemon that cannot be reached,
        ends the module; what is said of units is for the caller.
        """
        text = kwargs.get('text')
        command = [self.path, '--json'] + list(args)
        rc, out, err = self.module.run_command(command, data=text, binary_data=True)
        try:
            document = json.loads(out)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            self.module.fail_json(
                msg='cannot read the answer of %s: %s' % (' '.join(command), err.strip() or 'it is no JSON'),
                rc=rc, stdout=out, stderr=err)
        if 'error' in document:
            error = document['error']
            self.module.fail_json(msg=to_text(error.get('message') or err), kind=error.get('kind'), rc=rc)
        return rc, document

    def outcomes(self, *args, **kwargs):
        rc, document = self.ask(*args, **kwargs)
        return rc, [Outcome(o) for o in document.get('outcomes') or []]

    def propose(self, path, text, others=None):
        """Asks what would come of a file, together with others that are not what
        they are to be yet. None is the text of one that is gone."""
        args = ['propose', path] + (['--gone'] if text is None else ['-'])
        for other, its in sorted((others or {}).items()):
            if other == path or its == read(other):
                continue
            source = '' if its is None else temporary(self.module, its)
            args += ['--with', '%s=%s' % (other, source)]
        return self.outcomes(*args, text=text)


class Outcome(object):
    """What aaunitctl says of one unit or file."""

    def __init__(self, document):
        self.document = document
        self.name = document.get('unit', '')
        self.exit = document.get('exit', 1)
        self.changed = bool(document.get('changed'))
        verdict = document.get('verdict')
        self.answer = verdict.get('answer', 'unknown') if verdict else None

    def codes(self):
        return [r.get('code') for r in self.document.get('reasons') or []]

    def objectors(self):
        """The units whose reasons keep it from its policy, as they would run under it
        too; None is among them where something else is in the way."""
        return [r.get('unit') for r in self.document.get('reasons') or []]

    def waits_for(self, units):
        """Whether nothing is in the way but some of these units."""
        return bool(self.objectors()) and all(u in units for u in self.objectors())

    def reasons(self):
        """What speaks against it, the worst first."""
        found = list(self.document.get('reasons') or [])
        found += [f for f in self.document.get('findings') or [] if f.get('severity') == 'error']
        found += (self.document.get('verdict') or {}).get('reasons') or []
        return _sentences(found)

    def notes(self):
        found = list(self.document.get('notes') or [])
        found += [f for f in self.document.get('findings') or [] if f.get('severity') != 'error']
        return _sentences(found)

    def actions(self):
        plan = self.document.get('plan') or {}
        return ['%s %s' % (a.get('kind'), a.get('target')) for a in plan.get('actions') or []]

    def result(self):
        """What a play's output shows."""
        out = {
            'unit': self.name,
            'profile': self.document.get('profile', ''),
            'answer': self.answer,
            'exit': self.exit,
            'restarted': bool(self.document.get('restarted')),
            'undone': bool(self.document.get('undone')),
            'reasons': self.reasons(),
            'notes': self.notes(),
        }
        if self.document.get('plan') is not None:
            out['actions'] = self.actions()
        return out


def _sentences(reasons):
    out = []
    for r in reasons:
        text = r.get('detail') or r.get('code', '')
        if r.get('where') and r['where'] not in text:
            text += ' (%s)' % r['where']
        if r.get('next'):
            text += '; %s' % r['next']
        text = '[%s] %s' % (r.get('code', ''), text)
        if text not in out:
            out.append(text)
    return out


def confined(outcomes):
    """Whether every unit was seen confined: templates and prefixes have no
    verdict, and where nothing has one, nothing was seen."""
    answers = [o.answer for o in outcomes if o.answer is not None]
    return bool(answers) and all(a == 'confined' for a in answers) and all(o.exit == 0 for o in outcomes)


def failure(outcomes):
    """The sentence of a task that fails."""
    lines = []
    for o in outcomes:
        if o.exit == 0:
            continue
        what = 'cannot be done'
        if o.answer is not None:
            what = {'confined': 'confined, but', 'not-confined': 'not confined'}.get(o.answer, 'unknown whether it is confined')
        if o.document.get('undone'):
            what += ', and it is back to what it was'
        lines.append('%s: %s: %s' % (o.name, what, ' | '.join(o.reasons()) or 'aaunitctl explain %s says more' % o.name))
    return '\n'.join(lines) or 'aaunitctl failed and gave no reason'


def read(path):
    """The text of a file, or None where there is none."""
    try:
        with open(path, 'rb') as f:
            return to_text(f.read(), errors='surrogate_or_strict')
    except (IOError, OSError):
        if os.path.lexists(path):
            raise
        return None


def temporary(module, text):
    """A file with that text, for as long as the task runs."""
    handle, path = tempfile.mkstemp(dir=module.tmpdir)
    module.add_cleanup_file(path)
    with os.fdopen(handle, 'wb') as f:
        f.write(to_bytes(text, errors='surrogate_or_strict'))
    return path


def write(module, path, text):
    """Puts a file in place, whole or not at all: root's, and read by all."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        os.makedirs(directory, 0o755)
    source = temporary(module, text)
    os.chmod(source, 0o644)
    module.atomic_move(source, path)
    module.set_mode_if_different(path, 0o644, False)
    module.set_owner_if_different(path, 'root', False)
    module.set_group_if_different(path, 'root', False)


def difference(path, before, after, outcomes=()):
    """What --diff shows: the file, and what aaunitd does about it."""
    out = []
    if before != after:
        out.append({
            'before': before or '', 'after': after or '',
            'before_header': path if before is not None else '%s (absent)' % path,
            'after_header': path if after is not None else '%s (absent)' % path,
        })
    actions = ['%s: %s' % (o.name, a) for o in outcomes for a in o.actions()]
    if actions:
        out.append({'prepared': '\n'.join(actions) + '\n'})
    return out
