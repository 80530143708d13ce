# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import os

import pytest

from conftest import planned, reason, seen

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


def test_a_text_is_asked_with_what_is_to_come(host):
    waives = dict(name='a', unit='a.service', profile='p', restart_unit='no', assertions=dict(waive=[dict(code='policy-may-leave-profile', reason='why')]))
    here = dict(name='here', unit=['h.service'], profile='p')
    text = '# Managed by Ansible (aaunit.core.attachment): changes are overwritten.\n[Attachment]\nUnit=%s.service\nProfile=p\n'
    (host.others / 'here.conf').write_text(text % 'h')
    (host.others / 'old.conf').write_text(text % 'a')
    (host.files / 'q').write_text('profile q { }\n')
    profiles = [dict(name='p', content=TEXT), dict(name='s', state='absent')] + [dict(name=n, content='profile %s { }' % n) for n in 'qr']
    attachments = [waives, here, dict(name='old', state='absent'), dict(name='never', state='absent')]
    run = dict(name='p', content=TEXT, profiles=profiles, attachments=attachments)
    other = {'unit': str(host.files / 'r'), 'exit': 0}
    passes(host, other, planned('a.service', 'load-policy /x'), seen('h.service'))
    # What it is to be later, a.service does not pass now.
    host.outcomes('apply', {'unit': 'a.service', 'exit': 1, 'reasons': [reason('assertion-failed', 'no')]}, seen('h.service', changed=True))
    out = host.run('profile', check=True, **run)
    assert out['changed'] and host.together() == {
        str(host.others / 'a.conf'): (text % 'a').replace('Profile=p\n', 'Profile=p\nRestartUnit=no\n\n[Assertions]\nWaive=policy-may-leave-profile why\n'),
        str(host.others / 'old.conf'): None, str(host.files / 'r'): 'profile r { }\n'}
    out = host.run('profile', **run)
    assert out['changed'] and out['verified'] and [u['unit'] for u in out['units']] == ['h.service'], out
    assert (host.files / 'p').exists() and not (host.others / 'a.conf').exists()

    # An attachment to come that would be refused keeps the text from being written.
    (host.files / 'p').unlink()
    passes(host, planned('a.service', exit=1, reasons=[reason('assertion-failed', 'may write /etc/x')]))
    out = host.run('profile', **run)
    assert out['failed'] and 'nothing was changed: a.service: cannot be done: [assertion-failed]' in out['msg'] and not (host.files / 'p').exists()
    # What runs now is not what the text is asked about.
    passes(host, seen('a.service', 'unknown', plan={'actions': []}))
    host.outcomes('apply', seen('h.service'))
    assert host.run('profile', **run)['verified']

    for bad in (dict(name='a'), dict(name='a/b', state='absent'), dict(waives, nonsense=1), dict(waives, profile='p\nMode=complain')):
        out = host.run('profile', name='p', content=TEXT, attachments=[bad])
        assert out['failed'] and 'cannot' in out['msg'], out
    assert host.run('profile', name='p', content=TEXT, profiles=[dict(name='q')])['failed']


def test_a_text_that_another_attachment_lets_in_waits_for_it(host):
    b = dict(name='b', unit=['b.service'], profile='p', assertions=dict(waive=[dict(code='policy-may-everything', reason='why')]))
    passes(host, {'unit': 'a.service', 'exit': 0}, planned('b.service', 'load-policy /x'))
    why = reason('policy-may-everything', 'all is allowed')
    its = {'unit': 'b.service', 'exit': 1, 'reasons': [why]}
    host.outcomes('apply', seen('a.service', exit=1, reasons=[dict(why, unit='b.service')]), its, seen('c.service'))
    for changed in (True, False):
        out = host.run('profile', name='p', content=TEXT, attachments=[b])
        assert not out.get('failed') and out['changed'] == changed and out['waiting'] == ['a.service']
        assert not out['verified'] and [u['unit'] for u in out['units']] == ['c.service'], out
    # It waits for nobody else, and for none where something else is in the way, too.
    for reasons in ([dict(why, unit='c.service')], [dict(why, unit='b.service'), why], [why]):
        host.outcomes('apply', seen('a.service', exit=1, reasons=reasons), its)
        out = host.run('profile', name='p', content=TEXT, attachments=[b], verify=False)
        assert out['failed'] and out['waiting'] == [] and 'a.service: ' in out['msg'], out
    # The attachment is there: the task once more waits for all.
    passes(host, {'unit': 'a.service', 'exit': 0}, {'unit': 'b.service', 'exit': 0})
    host.outcomes('apply', seen('a.service', changed=True), seen('b.service'))
    out = host.run('profile', name='p', content=TEXT, attachments=[b])
    assert out['verified'] and out['changed'] and out['waiting'] == [] and [u['unit'] for u in out['units']] == ['a.service', 'b.service'], out


def test_removes_what_nobody_needs(host):
    path = host.files / 'p'
    path.write_text(TEXT)
    # Nobody has asked the daemon: AppArmor is off, and it does not answer.
    host.answers('status', {'version': '', 'units': []})
    out = host.run('profile', name='p', state='absent')
    assert out['failed'] and 'aaunitd did not say' in out['msg'] and path.exists()
    host.answers('status', {'version': '1', 'units': [{'unit': 'a.service', 'profileFile': str(path)}]})
    out = host.run('profile', name='p', state='absent')
    assert out['failed'] and 'a.service runs under it' in out['msg'] and path.exists()
    # Its attachment goes first, which a check has not done.
    host.answers('status', {'version': '1', 'units': [{'unit': 'a.service', 'profileFile': str(path), 'attachment': str(host.others / 'a.conf')}]})
    assert host.run('profile', check=True, name='p', state='absent', detached=['a'])['changed']
    assert host.run('profile', check=True, name='p', state='absent', detached=['b'])['failed']
    assert host.run('profile', name='p', state='absent', detached=['a'])['failed'] and path.exists()
    host.answers('status', {'version': '1', 'units': [{'unit': 'a.service', 'profileFile': '/etc/apparmor.d/other'}]}, rc=3)
    assert host.run('profile', check=True, name='p', state='absent')['changed'] and path.exists()
    assert host.run('profile', name='p', state='absent')['changed'] and not path.exists()
    assert not host.run('profile', name='p', state='absent')['changed']


@pytest.mark.parametrize('name', ['../passwd', 'a/b', '', '.hidden', 'a b', 'a\nb'])
def test_names_stay_in_the_directory(host, name):
    out = host.run('profile', name=name, content=TEXT)
    assert out['failed'] and 'cannot use the name' in out['msg'] and os.listdir(str(host.files)) == []


def test_an_empty_text_is_no_profile(host):
    assert 'is empty' in host.run('profile', name='p', content=' \n')['msg']
