# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import os
import re

import pytest

from conftest import COLLECTION, planned, reason, seen

ARGS = dict(name='agents', unit=['a.service'], profile='p')
TEXT = '''# Managed by Ansible (aaunit.core.attachment): changes are overwritten.
[Attachment]
Unit=a.service
Profile=p
'''
WRITE = 'write-drop-in /etc/systemd/system/a.service.d/90-aaunit.conf'


def file(host, name='agents'):
    return host.files / (name + '.conf')


def test_attaches_and_the_second_run_changes_nothing(host):
    host.outcomes('propose', planned('a.service', 'load-policy /etc/apparmor.d/p', WRITE, 'restart a.service'))
    host.outcomes('apply', seen('a.service', changed=True, restarted=True))
    out = host.run('attachment', **ARGS)
    assert out['changed'] and out['verified'], out
    assert file(host).read_text() == TEXT
    assert os.stat(str(file(host))).st_mode & 0o7777 == 0o644
    assert out['units'][0]['restarted'] and out['units'][0]['answer'] == 'confined'
    assert out['diff'][0]['after'] == TEXT and out['diff'][0]['before'] == ''
    assert WRITE in out['diff'][1]['prepared']
    path = str(file(host))
    assert host.calls() == [[['--json', 'propose', path, '-'], TEXT], [['--json', 'apply', path], None]]

    host.outcomes('propose', seen('a.service', plan={'actions': []}))
    host.outcomes('apply', seen('a.service'))
    out = host.run('attachment', **ARGS)
    assert not out['changed'] and out['verified'] and out['diff'] == []


def test_every_key_is_written(host):
    host.outcomes('propose', planned('a.service', WRITE))
    host.outcomes('apply', seen('a.service', changed=True))
    out = host.run(
        'attachment', name='all', unit=['a@.service', 'b-*.service'], profile='p-%i', profile_file='/srv/p', private_tmp='disconnected', mode='enforce',
        restart_unit=False, on_failed_attach='stop', on_violation='stop', on_profile_change='report', allow_profiles=['the helper', 'other'],
        settle_sec='2min',
        assertions=dict(deny=['write /etc/**'], allow=['network inet stream'], waive=[dict(code='policy-may-leave-profile', reason='operators log in')]),
        socket_options=dict(
            mode='enforce', required=False, allow=[dict(option='SOL_TCP:TCP_NODELAY', reason='small answers'), dict(option='6:99', reason='a new one')],
            allow_get=[dict(option='SO_ERROR', reason='connect')]))
    assert not out.get('failed'), out
    assert file(host, 'all').read_text().split('\n')[1:] == [
        '[Attachment]', 'Unit=a@.service', 'Unit=b-*.service', 'Profile=p-%i', 'ProfileFile=/srv/p', 'PrivateTmp=disconnected', 'Mode=enforce',
        'RestartUnit=no', 'OnFailedAttach=stop', 'OnViolation=stop', 'OnProfileChange=report', 'AllowProfiles="the helper"', 'AllowProfiles="other"',
        'SettleSec=2min', '', '[Assertions]', 'Deny=write /etc/**', 'Allow=network inet stream', 'Waive=policy-may-leave-profile operators log in',
        '', '[SocketOptions]', 'Mode=enforce', 'Required=no', 'Allow=SOL_TCP:TCP_NODELAY small answers', 'Allow=6:99 a new one',
        'AllowGet=SO_ERROR connect', '']


def test_a_section_that_says_nothing_records(host):
    host.outcomes('propose', planned('a.service', WRITE))
    out = host.run('attachment', check=True, socket_options={}, **ARGS)
    assert out['changed'] and out['diff'][0]['after'] == TEXT + '\n[SocketOptions]\n'
    assert host.calls()[0][1] == out['diff'][0]['after'] and not file(host).exists()


def test_a_change_of_the_list_is_predicted_and_made(host):
    options = dict(mode='record')
    host.outcomes('propose', planned('a.service', WRITE))
    host.outcomes('apply', seen('a.service', changed=True))
    assert host.run('attachment', socket_options=options, **ARGS)['changed']
    before = file(host).read_text()
    options = dict(mode='enforce', allow=[dict(option='TCP_NODELAY', reason='small answers')])
    host.outcomes('propose', planned('a.service', 'hold-socket-options a.service'))
    out = host.run('attachment', check=True, socket_options=options, **ARGS)
    assert out['changed'] and file(host).read_text() == before
    assert out['units'][0]['actions'] == ['hold-socket-options a.service']
    assert out['diff'][0]['before'] == before and 'Allow=TCP_NODELAY small answers\n' in out['diff'][0]['after']
    out = host.run('attachment', socket_options=options, **ARGS)
    assert out['changed'] and out['verified'] and not out['units'][0]['restarted']
    assert file(host).read_text().endswith('[SocketOptions]\nMode=enforce\nAllow=TCP_NODELAY small answers\n')


def test_an_option_without_a_reason_is_refused(host):
    for allow in (dict(option='TCP_NODELAY'), dict(option='TCP_NODELAY', reason=''), dict(option='', reason='x'), dict(option='A', reason='x\nMode=off')):
        out = host.run('attachment', socket_options=dict(allow=[allow]), **ARGS)
        assert out.get('failed'), out
    assert host.calls() == [] and os.listdir(str(host.files)) == []


def test_the_module_knows_the_keys_of_the_manual():
    """A key that aaunit.conf(5) has and the module has not is one that nobody can set."""
    with open(os.path.join(COLLECTION, '..', 'man', 'aaunit.conf.5')) as f:
        manual = f.read()
    with open(os.path.join(COLLECTION, 'plugins', 'module_utils', 'files.py')) as f:
        module = f.read()
    for section, title in (('Attachment', 'OPTIONS'), ('Assertions', 'ASSERTIONS'), ('SocketOptions', 'SOCKET OPTIONS')):
        documented = re.findall(r'^\.It Ic ([A-Za-z]+)=', manual.split('\n.Sh %s\n' % title)[1].split('\n.Sh ')[0], re.M)
        known = re.findall(r"^        \('[a-z_]+', '([A-Za-z]+)',", module.split("'%s', [" % section)[1].split('    ]),')[0], re.M)
        assert documented and sorted(known) == sorted(documented)


@pytest.mark.parametrize('args', [
    dict(unit=['a.service\nProfile=evil']), dict(profile='p\\'), dict(profile=' p'), dict(unit=['']), dict(allow_profiles=['a\x00b']),
    dict(name='../../etc/passwd'), dict(name='a/b'), dict(name='a.conf'), dict(name=''), dict(name='.hidden'), dict(profile='p\rx'),
])
def test_what_would_say_something_else_is_refused(host, args):
    out = host.run('attachment', **dict(ARGS, **args))
    assert out.get('failed') and 'cannot' in out['msg'], out
    assert host.calls() == [] and os.listdir(str(host.files)) == []


def test_check_mode_predicts_and_changes_nothing(host):
    host.outcomes('propose', planned('a.service', WRITE, 'restart a.service'))
    out = host.run('attachment', check=True, **ARGS)
    assert out['changed'] and not out['verified'] and out['units'][0]['actions'] == [WRITE, 'restart a.service']
    assert not file(host).exists() and [c[0][1] for c in host.calls()] == ['propose']


def test_check_mode_tells_a_host_that_was_broken_by_hand(host):
    file(host).write_text(TEXT)
    lost = seen('a.service', 'not-confined', plan={'actions': []})
    lost['verdict']['reasons'] = [reason('task-unconfined', '/usr/bin/a (PID 7) is unconfined')]
    host.outcomes('propose', lost)
    out = host.run('attachment', check=True, **ARGS)
    assert out['failed'] and 'a.service: not confined: [task-unconfined] /usr/bin/a (PID 7) is unconfined' in out['msg'], out
    # What aaunitd would mend is a change to come.
    host.outcomes('propose', planned('a.service', 'restart a.service'))
    out = host.run('attachment', check=True, **ARGS)
    assert out['changed'] and not out['verified']


def test_a_profile_to_come_is_a_warning_in_check_mode_only(host):
    none = planned('a.service', exit=1, reasons=[reason('profile-not-found', 'no file defines a profile p')])
    host.outcomes('propose', none)
    out = host.run('attachment', check=True, **ARGS)
    assert not out.get('failed') and out['changed'] and 'profile-not-found' in str(out['warnings'])
    out = host.run('attachment', **ARGS)
    assert out['failed'] and not out['changed'] and not file(host).exists()


def test_a_check_asks_with_what_is_to_come(host):
    profile, gone = str(host.others / 'p'), str(host.files / 'old.conf')
    (host.files / 'old.conf').write_text(TEXT)
    more = dict(ARGS, profiles=[dict(name='p', content='profile p { }')], attachments=[dict(name='old', state='absent'), ARGS])
    refused = planned('a.service', exit=1, reasons=[reason('assertion-failed', 'may write /etc/x')])
    host.outcomes('propose', refused)
    host.outcomes('propose with', {'unit': profile, 'exit': 3}, planned('a.service', WRITE), planned('b.service', exit=1, reasons=[reason('x', 'y')]))
    out = host.run('attachment', check=True, **more)
    assert out['changed'] and [u['unit'] for u in out['units']] == ['a.service'] and 'warnings' not in out, out
    assert host.together() == {profile: 'profile p { }\n', gone: None}
    host.outcomes('propose with', {'unit': profile, 'exit': 3, 'reasons': [reason('profile-broken', 'syntax error')]})
    assert 'syntax error' in host.run('attachment', check=True, **more)['msg']
    # When it is made, the profile is there.
    assert 'may write /etc/x' in host.run('attachment', **more)['msg']
    # What is not refused needs no second question.
    host.outcomes('propose', planned('a.service', WRITE))
    assert host.run('attachment', check=True, **more)['changed'] and host.together() == {}


def test_a_check_asks_with_nothing_that_comes_after_it(host):
    (host.files / 'old.conf').write_text(TEXT)
    host.outcomes('propose', planned('a.service', exit=1, reasons=[reason('rival-attachments', 'a.service is named by agents.conf and old.conf')]))
    host.outcomes('propose with', planned('a.service', WRITE))
    old = dict(name='old', state='absent')
    for check in (True, False):
        out = host.run('attachment', check=check, attachments=[ARGS, old], **ARGS)
        assert out['failed'] and 'rival-attachments' in out['msg'], out
    assert not host.run('attachment', check=True, attachments=[old, ARGS], **ARGS).get('failed')
    assert not host.run('attachment', check=True, attachments=[old], **ARGS).get('failed')


def test_what_only_attachments_to_come_refuse_waits_for_them(host):
    c = dict(name='c', unit=['c.service'], profile='p', assertions=dict(waive=[dict(code='policy-may-everything', reason='why')]))
    why = reason('policy-may-everything', 'c.service would run under it too: all is allowed', unit='c.service')
    refused = planned('a.service', exit=1, reasons=[why])
    host.outcomes('propose', refused)
    host.outcomes('propose with', planned('a.service', WRITE), planned('c.service', 'load-policy /x'))
    host.outcomes('apply', seen('a.service', exit=1, reasons=[why]))
    run = dict(ARGS, attachments=[ARGS, c])
    for check, changed, written in ((True, True, False), (False, True, True), (False, False, True), (True, True, True)):
        out = host.run('attachment', check=check, **run)
        assert not out.get('failed') and out['waiting'] == ['a.service'] and not out['verified'], out
        assert out['changed'] == changed and file(host).exists() == written, out
    # It waits for nobody else, for none that is refused itself, and for none where something else is in the way, too.
    file(host).unlink()
    for theirs in (
        [planned('c.service', exit=1, reasons=[reason('x', 'y')])], [seen('c.service')], [planned('b.service', WRITE)], [],
    ):
        host.outcomes('propose with', refused, *theirs)
        for check in (False, True):
            out = host.run('attachment', check=check, verify=False, **run)
            assert out['failed'] and out['waiting'] == [] and 'c.service would run under it too' in out['msg'] and not file(host).exists(), out
    host.outcomes('propose with', planned('a.service', WRITE), planned('c.service', 'load-policy /x'))
    host.outcomes('propose', planned('a.service', exit=1, reasons=[why, reason('assertion-failed', 'no')]))
    assert host.run('attachment', **run)['failed'] and not file(host).exists()
    # When it is there, the task once more attaches it.
    host.outcomes('propose', planned('a.service', WRITE))
    host.outcomes('apply', seen('a.service', changed=True))
    out = host.run('attachment', **run)
    assert out['verified'] and out['changed'] and out['waiting'] == [], out


@pytest.mark.parametrize('check', [False, True])
def test_what_aaunitd_refuses_is_not_written(host, check):
    file(host).write_text('before\n')
    host.outcomes('propose', planned('a.service', exit=1, reasons=[
        reason('profile-broken', 'syntax error', where='/etc/apparmor.d/p:3', next='correct line 3')]))
    out = host.run('attachment', check=check, **ARGS)
    assert out['failed'] and 'syntax error (/etc/apparmor.d/p:3); correct line 3' in out['msg']
    assert file(host).read_text() == 'before\n'
    assert 'apply' not in [c[0][1] for c in host.calls()]


def test_an_attach_that_fails_fails_the_task(host):
    host.outcomes('propose', planned('a.service', WRITE))
    undone = seen('a.service', 'not-confined', exit=1, undone=True, reasons=[reason('attach-failed', 'it ended after 0.2 s')])
    for verify in (True, False):
        host.outcomes('apply', undone)
        out = host.run('attachment', verify=verify, **ARGS)
        assert out['failed'] and not out['verified'] and 'back to what it was' in out['msg'] and 'it ended after 0.2 s' in out['msg']


def test_a_unit_that_does_not_run_was_not_seen(host):
    host.outcomes('propose', planned('a.service', WRITE))
    host.outcomes('apply', seen('a.service', 'unknown'))
    out = host.run('attachment', **ARGS)
    assert out['failed'] and out['changed'] and not out['verified']
    out = host.run('attachment', verify=False, **ARGS)
    assert not out.get('failed') and not out['verified'] and out['warnings']


def test_a_template_alone_proves_nothing(host):
    host.outcomes('propose', planned('a@.service', WRITE))
    host.outcomes('apply', {'unit': 'a@.service', 'exit': 0, 'changed': True})
    out = host.run('attachment', name='agents', unit=['a@.service'], profile='p')
    assert not out.get('failed') and out['changed'] and not out['verified']


def test_detaches(host):
    file(host).write_text(TEXT)
    host.outcomes('propose', planned('a.service', 'remove-drop-in /x', 'restart a.service'))
    host.outcomes('apply', {'unit': 'a.service', 'exit': 0, 'changed': True, 'restarted': True})
    out = host.run('attachment', check=True, name='agents', state='absent')
    assert out['changed'] and file(host).exists()
    out = host.run('attachment', name='agents', state='absent')
    assert out['changed'] and not out['verified'] and not file(host).exists()
    assert host.calls()[-2][0][1:] == ['propose', str(file(host)), '--gone']

    nothing = {'unit': str(file(host)), 'exit': 0, 'notes': [reason('not-attached', 'no unit is attached by it')]}
    never = {'unit': str(file(host)), 'exit': 4, 'reasons': [reason('not-attached', 'there is no such file')]}
    for done in (nothing, never):
        host.outcomes('propose', nothing)
        host.outcomes('apply', done)
        out = host.run('attachment', name='agents', state='absent')
        assert not out.get('failed') and not out['changed'], out


def test_says_what_is_missing(host):
    host.answers('propose', {'error': {'message': 'cannot reach aaunitd: its service is disabled', 'kind': 'no-daemon', 'exit': 1}}, rc=1)
    out = host.run('attachment', **ARGS)
    assert out['failed'] and out['msg'] == 'cannot reach aaunitd: its service is disabled' and out['kind'] == 'no-daemon'
    host.outcomes('propose', planned('a.service', exit=1, reasons=[reason('apparmor-off', 'AppArmor is off')]))
    assert 'AppArmor is off' in host.run('attachment', **ARGS)['msg']
    host.answers('propose', 'Segmentation fault', rc=139, err='no')
    assert 'cannot read the answer' in host.run('attachment', **ARGS)['msg']
    host.tool.unlink()
    assert 'install the package aaunit' in host.run('attachment', **ARGS)['msg']
    assert os.listdir(str(host.files)) == []
