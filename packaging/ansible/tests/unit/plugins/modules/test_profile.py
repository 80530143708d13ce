# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import os

import pytest

from conftest import reason, seen

TEXT = 'profile p { }\n'


def passes(host, *units):
    host.outcomes('propose', {'unit': str(host.files / 'p'), 'profile': 'p', 'exit': 0}, *units)


def test_installs_a_text_that_passes(host):
    passes(host)
    host.outcomes('apply', {'unit': str(host.files / 'p'), 'exit': 0, 'notes': [reason('not-attached', 'nobody')]})
    out = host.run('profile', check=True, name='p', content=TEXT.strip())
    assert out['changed'] and not (host.files / 'p').exists() and 'apply' not in [c[0][1] for c in host.calls()]
    out = host.run('profile', name='p', content=TEXT.strip())
    assert out['changed'] and out['profiles'] == 'p' and not out['verified'] and (host.files / 'p').read_text() == TEXT
    assert out['diff'][0]['after'] == TEXT
    out = host.run('profile', name='p', content=TEXT)
    assert not out['changed'] and out['diff'] == []


@pytest.mark.parametrize('check', [False, True])
def test_a_text_that_does_not_pass_is_not_written(host, check):
    (host.files / 'p').write_text('profile p { /old r, }\n')
    host.outcomes('propose', {'unit': str(host.files / 'p'), 'exit': 3, 'reasons': [reason('profile-broken', 'syntax error')]})
    out = host.run('profile', check=check, name='p', content=TEXT)
    assert out['failed'] and not out['changed'] and 'syntax error' in out['msg']
    # Nor is one that would not do for a unit.
    unit = {'unit': 'a.service', 'exit': 3, 'findings': [dict(reason('assertion-failed', 'may write /etc/x'), severity='error')]}
    passes(host, unit)
    out = host.run('profile', check=check, name='p', content=TEXT)
    assert out['failed'] and 'a.service: cannot be done: [assertion-failed] may write /etc/x' in out['msg'], out
    assert (host.files / 'p').read_text() == 'profile p { /old r, }\n'


def test_waits_for_the_units_that_run_under_it(host):
    passes(host, {'unit': 'a.service', 'exit': 0, 'findings': [dict(reason('policy-may-all', 'large'), severity='note')]})
    host.outcomes('apply', seen('a.service', changed=True))
    out = host.run('profile', name='p', content=TEXT)
    assert out['changed'] and out['verified'] and out['units'][0]['answer'] == 'confined' and '[policy-may-all] large' in out['notes']
    host.outcomes('apply', seen('a.service', 'not-confined', exit=1, undone=True, reasons=[reason('attach-failed', 'denied')]))
    assert host.run('profile', name='p', content=TEXT + '# 2\n', verify=False)['failed']
    host.outcomes('apply', seen('a.service', 'unknown'))
    assert host.run('profile', name='p', content=TEXT + '# 3\n')['failed']
    out = host.run('profile', name='p', content=TEXT + '# 4\n', verify=False)
    assert not out.get('failed') and out['warnings'] and not out['verified']


def test_removes_what_nobody_needs(host):
    path = host.files / 'p'
    path.write_text(TEXT)
    host.answers('status', {'units': [{'unit': 'a.service', 'profileFile': str(path)}]})
    out = host.run('profile', name='p', state='absent')
    assert out['failed'] and 'a.service runs under it' in out['msg'] and path.exists()
    # Its attachment goes first, which a check has not done.
    host.answers('status', {'units': [{'unit': 'a.service', 'profileFile': str(path), 'attachment': '/etc/aaunit/attachments.d/a.conf'}]})
    assert host.run('profile', check=True, name='p', state='absent', detached=['a'])['changed']
    assert host.run('profile', check=True, name='p', state='absent', detached=['b'])['failed']
    assert host.run('profile', name='p', state='absent', detached=['a'])['failed'] and path.exists()
    host.answers('status', {'units': [{'unit': 'a.service', 'profileFile': '/etc/apparmor.d/other'}]}, rc=3)
    assert host.run('profile', check=True, name='p', state='absent')['changed'] and path.exists()
    assert host.run('profile', name='p', state='absent')['changed'] and not path.exists()
    assert not host.run('profile', name='p', state='absent')['changed']


@pytest.mark.parametrize('name', ['../passwd', 'a/b', '', '.hidden', 'a b', 'a\nb'])
def test_names_stay_in_the_directory(host, name):
    out = host.run('profile', name=name, content=TEXT)
    assert out['failed'] and 'cannot use the name' in out['msg'] and os.listdir(str(host.files)) == []


def test_an_empty_text_is_no_profile(host):
    assert 'is empty' in host.run('profile', name='p', content=' \n')['msg']
