# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

from conftest import reason

HOST = {'enabled': 'yes', 'globalMode': 'enforce', 'bootService': 'yes'}


def status(unit, answer, *reasons):
    return {'unit': unit, 'profile': 'p', 'verdict': {'answer': answer, 'reasons': list(reasons)}}


def coming(unit, answer, words, *refused):
    return {'unit': unit, 'profile': 'p', 'toCome': answer, 'toComeText': words, 'refused': list(refused)}


def test_tells_what_was_seen(host):
    host.answers('version', {'version': '1.2'})
    host.answers('verify', {'version': '1.1', 'host': HOST, 'units': [status('a.service', 'confined')]})
    out = host.run('info', check=True)
    assert not out['changed'] and out['confined'] and out['version'] == '1.2' and out['daemon_version'] == '1.1'
    assert out['apparmor'] == HOST and out['findings'] == [] and out['units'][0]['unit'] == 'a.service'
    host.answers('status', {'version': '1.1', 'host': HOST, 'units': [status('a.service', 'confined')]})
    assert host.run('info', verify=False, unit=['a*', '--all'])['confined']
    assert host.calls()[-1][0] == ['--json', 'status', '--', 'a*', '--all']


def test_names_what_is_not_confined_and_does_not_fail(host):
    host.answers('version', {'version': '1.2'})
    held = dict(status('b.service', 'confined'), held={'reasons': [reason('attach-failed', 'it ended')]})
    never = {'unit': 'c.service'}
    host.answers('verify', {
        'host': HOST, 'units': [status('a.service', 'not-confined', reason('task-unconfined', 'PID 7 is unconfined')), held, never],
        'patterns': [
            coming('d@.service', 'confined', 'units to come start under the profile'),
            coming('d-.service', 'not-confined', 'units to come are not confined by it'),
            coming('e@.service', 'not-confined', 'units to come are not confined by it', reason('drop-in-foreign', 'somebody wrote it')),
            coming('f@.service', 'confined', 'units to come start under the profile', reason('profile-mode-disputed', 'b.service enforces')),
            {'unit': 'g@.service', 'dropIn': '/etc/systemd/system/g@.service.d/90-aaunit.conf'},
        ],
        'missing': [{'unit': 'f.service', 'reason': reason('not-attached', 'no attachment names it')}],
        'problems': [reason('attachment-bad', 'line 3', where='/etc/x:3')],
    }, rc=3)
    out = host.run('info')
    assert not out.get('failed') and not out['confined'] and out['exit'] == 3
    assert out['findings'] == [
        'a.service: not-confined: [task-unconfined] PID 7 is unconfined',
        'b.service: confined: [attach-failed] it ended',
        'c.service: unknown: it was not looked at yet',
        'd-.service: not-confined (units to come): units to come are not confined by it',
        'e@.service: not-confined (units to come): [drop-in-foreign] somebody wrote it',
        'f@.service: confined (units to come): [profile-mode-disputed] b.service enforces',
        'g@.service: unknown (units to come): it was not told whether units to come are confined by it',
        'f.service: [not-attached] no attachment names it',
        '[attachment-bad] line 3 (/etc/x:3)',
    ]


def test_a_template_without_units_is_in_order(host):
    template = coming('d@.service', 'confined', 'units to come start under the profile')
    host.answers('version', {'version': '1.2'})
    host.answers('verify', {'host': HOST, 'units': [], 'patterns': [template]})
    out = host.run('info')
    assert out['confined'] and out['findings'] == [] and out['units'] == [] and out['patterns'] == [template]
    host.answers('verify', {'host': HOST, 'units': [], 'patterns': [dict(template, refused=[reason('apparmor-off', 'off')])]}, rc=3)
    assert not host.run('info')['confined']


def test_a_template_of_which_a_changed_text_is_held_is_told_as_it_is(host):
    held = {'reasons': [reason('policy-undone', 'undone')], 'texts': {'/etc/apparmor.d/d': 'x'}}
    host.answers('version', {'version': '1.2'})
    host.answers('verify', {'host': HOST, 'units': [], 'patterns': [dict(coming('d@.service', 'confined', 'x'), held=held)]})
    out = host.run('info')
    assert out['confined'] and out['findings'] == ['d@.service: confined (units to come): [policy-undone] undone']


def test_nothing_attached_is_not_confined(host):
    host.answers('version', {'version': '1.2'})
    host.answers('verify', {'host': HOST, 'units': []})
    out = host.run('info')
    assert not out['confined'] and out['exit'] == 0
