#!/usr/bin/python
# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
module: info
short_description: Say which systemd services run under AppArmor, as it was seen
version_added: "0.1.0"
author:
  - The aaunit authors (@aaunit)
description:
  - Tells of a host whether AppArmor is on, which units are attached to which profile, and the verdict on each.
  - Changes nothing, and does not fail because a unit is not confined. What is confined is in the result.
requirements:
  - the package aaunit on the host
options:
  unit:
    description:
      - Units and shell patterns. All attached units without it.
    type: list
    elements: str
    default: []
  verify:
    description:
      - Whether the units are looked at now. With C(false), the last verdict on each is told.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
  diff_mode:
    support: none
    description: Changes nothing.
seealso:
  - module: aaunit.core.attachment
'''

EXAMPLES = r'''
- name: Look at all attached services
  aaunit.core.info:
  register: look

- name: Stop here where one is not confined
  ansible.builtin.assert:
    that: look.confined
    fail_msg: "{{ look.findings | join('\n') }}"
'''

RETURN = r'''
version:
  description: The version of aaunitctl.
  returned: always
  type: str
  sample: 1.0.0
daemon_version:
  description: The version of aaunitd.
  returned: always
  type: str
  sample: 1.0.0
apparmor:
  description: The state of AppArmor on the host.
  returned: always
  type: dict
  contains:
    enabled:
      description: Whether AppArmor is on, C(yes), C(no) or C(unknown).
      type: str
      returned: always
    globalMode:
      description: Its global mode, which may take the force from every profile.
      type: str
      returned: always
    bootService:
      description: Whether profiles are loaded at boot.
      type: str
      returned: always
confined:
  description:
    - Whether AppArmor is on, something is attached, and every unit that was asked about is confined.
      Of a template or prefix this says that units to come are confined by it. Where nothing else is attached, no unit was seen.
  returned: always
  type: bool
exit:
  description: What aaunitctl(1) exits with.
  returned: always
  type: int
findings:
  description: A sentence on each unit that is not seen confined, and on each attachment file that is not in use.
  returned: always
  type: list
  elements: str
units:
  description: The attached units, as aaunitctl(1) gives them in JSON.
  returned: always
  type: list
  elements: dict
patterns:
  description: The templates and prefixes that attachments name, each with C(toCome), whether units to come are confined by it.
  returned: always
  type: list
  elements: dict
'''

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aaunit.core.plugins.module_utils.aaunitctl import Aaunitctl, Outcome


def findings(report):
    """What is not as it should be, a sentence each."""
    out = []
    for s in (report.get('units') or []) + (report.get('patterns') or []):
        reasons = list(s.get('refused') or []) + list((s.get('held') or {}).get('reasons') or [])
        answer = (s.get('verdict') or {}).get('answer', 'unknown')
        unsaid = 'it was not looked at yet'
        if s in (report.get('patterns') or []):
            answer, unsaid = s.get('toCome', 'unknown'), s.get('toComeText') or 'it was not told whether units to come are confined by it'
            if answer == 'confined' and not reasons:
                continue
            answer = '%s (units to come)' % answer
        elif answer == 'confined' and not reasons:
            continue
        reasons += (s.get('verdict') or {}).get('reasons') or []
        out.append('%s: %s: %s' % (s.get('unit'), answer, ' | '.join(Outcome({'reasons': reasons}).reasons()) or unsaid))
    for m in report.get('missing') or []:
        out.append('%s: %s' % (m.get('unit'), ' | '.join(Outcome({'reasons': [m.get('reason') or {}]}).reasons())))
    out += Outcome({'reasons': report.get('problems') or []}).reasons()
    return out


def main():
    module = AnsibleModule(
        argument_spec=dict(
            unit=dict(type='list', elements='str', default=[]),
            verify=dict(type='bool', default=True),
        ),
        supports_check_mode=True,
    )
    aaunitctl = Aaunitctl(module)
    rc, version = aaunitctl.ask('version')
    rc, report = aaunitctl.ask('verify' if module.params['verify'] else 'status', '--', *module.params['unit'])
    module.exit_json(
        changed=False,
        version=version.get('version', ''),
        daemon_version=report.get('version', ''),
        apparmor=report.get('host') or {},
        confined=rc == 0 and bool(report.get('units') or report.get('patterns')),
        exit=rc,
        findings=findings(report),
        units=report.get('units') or [],
        patterns=report.get('patterns') or [],
    )


if __name__ == '__main__':
    main()
