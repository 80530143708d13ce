# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

"""Modules are run as Ansible runs them: a process of their own, with arguments in
JSON. aaunitctl is a script that notes how it was called, and answers what a test
has put down for the command."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import os
import subprocess
import sys

import pytest

COLLECTION = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..', '..', '..'))

FAKE = '''#!{python}
import json, os, sys
here = {here!r}
text = sys.stdin.read() if '-' in sys.argv[1:] else None
with open(os.path.join(here, 'calls'), 'a') as f:
    f.write(json.dumps([sys.argv[1:], text]) + '\\n')
others = [a.split('=') for before, a in zip(sys.argv, sys.argv[1:]) if before == '--with']
with open(os.path.join(here, 'with'), 'w') as f:
    json.dump(dict((name, open(text).read() if text else None) for name, text in others), f)
command = [a for a in sys.argv[1:] if a != '--json'][0]
if others and os.path.exists(os.path.join(here, command + ' with')):
    command += ' with'
answer = json.load(open(os.path.join(here, command)))
sys.stdout.write(answer['out'])
sys.stderr.write(answer['err'])
sys.exit(answer['rc'])
'''

RUN = '''
import importlib, sys
sys.path[:0] = {path!r}
module = importlib.import_module('ansible_collections.aaunit.core.plugins.modules.' + {name!r})
utils = importlib.import_module('ansible_collections.aaunit.core.plugins.module_utils.aaunitctl')
utils.PLACES = [{bin!r}]
if {directory!r}:
    module.DIRECTORY = {directory!r}
    module.PROFILES = module.ATTACHMENTS = {others!r}
module.main()
'''


class Host(object):
    """A host with a directory for files, and a fake aaunitctl."""

    def __init__(self, tmp, monkeypatch):
        self.tmp = tmp
        self.bin = tmp / 'bin'
        self.bin.mkdir()
        self.files = tmp / 'files'
        self.files.mkdir()
        self.others = tmp / 'others'  # where the other kind of files is
        self.others.mkdir()
        # Ansible finds a collection below a directory of this name.
        tree = tmp / 'tree' / 'ansible_collections' / 'aaunit'
        tree.mkdir(parents=True)
        (tree / 'core').symlink_to(COLLECTION)
        self.tool = self.bin / 'aaunitctl'
        self.tool.write_text(FAKE.format(python=sys.executable, here=str(tmp)))
        self.tool.chmod(0o755)
        monkeypatch.setenv('PATH', '/usr/bin:/bin')

    def answers(self, command, document, rc=0, err=''):
        out = document if isinstance(document, str) else json.dumps(document)
        (self.tmp / command).write_text(json.dumps({'out': out, 'err': err, 'rc': rc}))

    def outcomes(self, command, *outcomes):
        self.answers(command, {'outcomes': list(outcomes)}, rc=max(o.get('exit', 0) for o in outcomes))

    def calls(self):
        path = self.tmp / 'calls'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def together(self):
        """The texts that the last command was told with --with."""
        return json.loads((self.tmp / 'with').read_text())

    def run(self, module, check=False, **args):
        args.update(_ansible_check_mode=check, _ansible_diff=True, _ansible_remote_tmp=str(self.tmp), _ansible_keep_remote_files=False)
        code = RUN.format(path=[str(self.tmp / 'tree')], name=module, bin=str(self.bin), directory=str(self.files) if module != 'info' else '',
                          others=str(self.others))
        done = subprocess.run(
            [sys.executable, '-c', code], input=json.dumps({'ANSIBLE_MODULE_ARGS': args}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            check=False)
        assert done.stdout.startswith('\n{') or done.stdout.startswith('{'), done.stdout + done.stderr
        result = json.loads(done.stdout)
        assert bool(result.get('failed')) == (done.returncode != 0)
        return result


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def planned(unit, *actions, **more):
    out = {'unit': unit, 'profile': 'p', 'exit': 0, 'changed': bool(actions),
           'plan': {'unit': unit, 'actions': [{'kind': a.split()[0], 'target': a.split()[1]} for a in actions]}}
    out.update(more)
    return out


def seen(unit, answer='confined', **more):
    out = {'unit': unit, 'profile': 'p', 'changed': False, 'exit': {'confined': 0, 'not-confined': 3}.get(answer, 5),
           'verdict': {'unit': unit, 'answer': answer, 'reasons': []}}
    out.update(more)
    return out


def reason(code, detail, **more):
    out = {'code': code, 'detail': detail}
    out.update(more)
    return out
