# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

"""The role is run as it is, with modules in place of the collection's that note how they
were called and answer what a test has put down."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import os
import shutil
import subprocess

import pytest

from conftest import COLLECTION

MODULE = '''#!/usr/bin/python3
import json, sys
from ansible.module_utils.basic import AnsibleModule
here, kind = {here!r}, {kind!r}
arguments = dict((name, dict(type='raw')) for name in {arguments!r})
module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
called = '%s %s' % (kind, module.params.get('name'))
with open(here + '/calls', 'a') as f:
    f.write(called + '\\n')
with open(here + '/calls') as f:
    first = f.read().split('\\n').count(called) == 1
answers = json.load(open(here + '/answers'))
module.exit_json(changed=False, exit=0, findings=[], units=[], patterns=[], waiting=answers.get(called, []) if first else [])
'''


@pytest.fixture
def role(tmp_path, monkeypatch):
    core = tmp_path / 'ansible_collections' / 'aaunit' / 'core'
    shutil.copytree(COLLECTION, str(core), ignore=shutil.ignore_patterns('tests', '__pycache__'))
    (core / 'roles' / 'aaunit' / 'tasks' / 'install.yml').write_text('---\n')
    for kind, arguments in (('profile', 'name content state detached profiles attachments verify'), ('attachment', 'name unit profile profiles attachments'),
                            ('info', '')):
        (core / 'plugins' / 'modules' / (kind + '.py')).write_text(MODULE.format(here=str(tmp_path), kind=kind, arguments=arguments.split()))
    (tmp_path / 'ansible.cfg').write_text('[defaults]\n')
    for name, value in (('HOME', tmp_path), ('ANSIBLE_CONFIG', tmp_path / 'ansible.cfg'), ('ANSIBLE_COLLECTIONS_PATH', tmp_path), ('PATH', '/usr/bin:/bin'),
                        ('ANSIBLE_LOCAL_TEMP', tmp_path / 'tmp'), ('LC_ALL', 'C.UTF-8')):
        monkeypatch.setenv(name, str(value))

    def run(answers, **variables):
        (tmp_path / 'answers').write_text(json.dumps(answers))
        (tmp_path / 'calls').write_text('')
        play = [dict(hosts='localhost', connection='local', gather_facts=False, roles=[dict(role='aaunit.core.aaunit', vars=variables)])]
        (tmp_path / 'play.yml').write_text(json.dumps(play))
        done = subprocess.run(
            ['/usr/bin/ansible-playbook', '-i', 'localhost,', str(tmp_path / 'play.yml')], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=str(tmp_path), env=dict(os.environ), check=False)
        assert done.returncode == 0, done.stdout
        return (tmp_path / 'calls').read_text().splitlines()
    return run


def test_what_waits_for_attachments_has_its_turn_behind_them(role):
    profiles = [dict(name=n, content='profile %s { }' % n) for n in 'pq'] + [dict(name='old', state='absent')]
    attachments = [dict(name=n, unit=[n + '.service'], profile='p') for n in 'abc']
    once = ['profile p', 'profile q', 'attachment a', 'attachment b', 'attachment c']
    rest = ['profile old', 'info None']
    waiting = {'profile p': ['d.service'], 'attachment b': ['b.service']}
    assert role(waiting, aaunit_profiles=profiles, aaunit_attachments=attachments) == once + ['attachment b', 'profile p'] + rest
    assert role({}) == ['info None']
