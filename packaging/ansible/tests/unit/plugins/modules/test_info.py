# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

from conftest import reason

HOST = {'enabled': 'yes', 'globalMode': 'enforce', 'bootService': 'yes'}


def status(unit, answer, *reasons):
    return {'unit': unit, 'profile': 'p', 'verdict': {'answer': answer, 'reasons': list(reasons)}}


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
            {'unit': 'd@.service', 'dropIn': '/etc/systemd/system/d@.service.d/90-aaunit.conf'}, {'unit': 'd-.service'},
            {'unit': 'e@.service', 'refused': [reason('drop-in-foreign', 'somebody wrote it')]},
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
        'd-.service: not in use: its drop-in is not in place',
        'e@.service: not in use: [drop-in-foreign] somebody wrote it',
        'f.service: [not-attached] no attachment names it',
        '[attachment-bad] line 3 (/etc/x:3)',
    ]


def test_a_template_without_units_is_in_order(host):
    template = {'unit': 'd@.service', 'dropIn': '/etc/systemd/system/d@.service.d/90-aaunit.conf'}
    host.answers('version', {'version': '1.2'})
    host.answers('verify', {'host': HOST, 'units': [], 'patterns': [template]})
    out = host.run('info')
    assert out['confined'] and out['findings'] == [] and out['units'] == [] and out['patterns'] == [template]
    host.answers('verify', {'host': HOST, 'units': [], 'patterns': [dict(template, refused=[reason('apparmor-off', 'off')])]}, rc=3)
    assert not host.run('info')['confined']


def test_nothing_attached_is_not_confined(host):
    host.answers('version', {'version': '1.2'})
    host.answers('verify', {'host': HOST, 'units': []})
    out = host.run('info')
    assert not out['confined'] and out['exit'] == 0
