#!/usr/bin/python
# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
module: profile
short_description: Install an AppArmor profile that was checked
version_added: "0.1.0"
author:
  - The aaunit authors (@aaunit)
description:
  - Puts a profile file into C(/etc/apparmor.d), after aaunit has compiled it and asked the compiled policy what it allows.
    A text that does not pass is not written, and what was there stays.
  - What uses it is asked too, each unit with what its attachment asserts and waives. A profile that nobody uses is asked with nothing waived.
    Where the text is changed, the task waits until they run under it, and fails unless each is seen confined and healthy.
    aaunitd takes a text back under which a unit fails.
  - A profile under which no unit runs is installed and not loaded. An attachment loads it.
requirements:
  - the package aaunit on the host
options:
  name:
    description:
      - Name of the file in C(/etc/apparmor.d).
    type: str
    required: true
  content:
    description:
      - Text of the profile. Needed for I(state=present).
    type: str
  state:
    description:
      - C(present) installs the file, C(absent) removes it. It is not removed while a unit is attached to a profile of it.
    type: str
    choices: [present, absent]
    default: present
  detached:
    description:
      - Attachments that a task before this one removes, by name.
        In check mode they are still there, and do not keep the profile from being removed.
    type: list
    elements: str
    default: []
  profiles:
    description:
      - Other profiles that are installed along with this one, each a dictionary with C(name) and C(content).
        All of them are asked about together.
    type: list
    elements: dict
    default: []
  attachments:
    description:
      - Attachments that tasks behind this one make or remove, each with the arguments of M(aaunit.core.attachment).
        What they assert and waive is what the text is asked by, in place of what is attached now, and where one of them would be refused
        the text is not written.
      - Those that are to change wait for their units themselves. Where one of them is what lets the text in, it goes live for no unit before,
        and I(waiting) says which others share it.
    type: list
    elements: dict
    default: []
  verify:
    description:
      - Whether the task fails when a unit that runs under the profile is not seen confined.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Checks the text, and writes nothing.
  diff_mode:
    support: full
    description: Shows the file.
seealso:
  - module: aaunit.core.attachment
'''

EXAMPLES = r'''
- name: Install the agent's profile
  aaunit.core.profile:
    name: usr.local.bin.agent
    content: "{{ lookup('ansible.builtin.template', 'agent.apparmor.j2') }}"

- name: Install it before the attachment that waives something of it
  aaunit.core.profile:
    name: usr.local.bin.agent
    content: "{{ lookup('ansible.builtin.template', 'agent.apparmor.j2') }}"
    attachments:
      - name: agent
        unit: [agent.service]
        profile: agent
        assertions:
          waive:
            - code: policy-may-leave-profile
              reason: operators log in through it

- name: Remove a profile that nobody needs any more
  aaunit.core.profile:
    name: usr.local.bin.old
    state: absent
'''

RETURN = r'''
path:
  description: The profile file.
  returned: always
  type: str
  sample: /etc/apparmor.d/usr.local.bin.agent
profiles:
  description: The profiles that it defines, separated by commas.
  returned: for state C(present)
  type: str
  sample: agent
verified:
  description: Whether every unit that runs under it was looked at in this task and is confined.
  returned: always
  type: bool
  sample: true
waiting:
  description:
    - Units for which the text is not live yet, since one of I(attachments) is what lets it in. They are as they were.
      The same task once more, behind those of the attachments, waits for them.
  returned: for state C(present)
  type: list
  elements: str
notes:
  description: What the check found that does not keep the text from going live.
  returned: for state C(present)
  type: list
  elements: str
units:
  description: The units that run under the profile, as of M(aaunit.core.attachment).
  returned: always
  type: list
  elements: dict
'''

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_text
from ansible_collections.aaunit.core.plugins.module_utils.aaunitctl import (
    Aaunitctl, confined, difference, failure, read, write,
)
from ansible_collections.aaunit.core.plugins.module_utils.files import (
    ATTACHMENTS, PROFILES as DIRECTORY, attachment_texts, profile_path, profile_text, profile_texts,
)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            name=dict(type='str', required=True),
            content=dict(type='str'),
            state=dict(type='str', choices=['present', 'absent'], default='present'),
            detached=dict(type='list', elements='str', default=[]),
            profiles=dict(type='list', elements='dict', default=[]),
            attachments=dict(type='list', elements='dict', default=[]),
            verify=dict(type='bool', default=True),
        ),
        required_if=[('state', 'present', ('content',))],
        supports_check_mode=True,
    )
    after, others = None, {}
    try:
        path = profile_path(DIRECTORY, module.params['name'])
        if module.params['state'] == 'present':
            after = profile_text(path, module.params['content'])
            others = profile_texts(DIRECTORY, module.params['profiles'])
            others.update(attachment_texts(ATTACHMENTS, module.params['attachments']))
    except ValueError as e:
        module.fail_json(msg=to_text(e))
    aaunitctl = Aaunitctl(module)
    before = read(path)
    if after is None:
        remove(module, aaunitctl, path, before)

    rc, checked = aaunitctl.propose(path, after, others)
    of_file = [o for o in checked if o.name == path]
    units = [o for o in checked if o.name != path and o.name not in others]
    # Units that an attachment to come changes are for its task to wait for.
    later = [o.name for o in units if o.document.get('plan') is not None]
    result = dict(
        path=path,
        changed=before != after,
        verified=False,
        waiting=[],
        profiles=', '.join(o.document.get('profile', '') for o in of_file),
        notes=[n for o in checked for n in o.notes()],
        units=[o.result() for o in units],
        diff=difference(path, before, after),
    )
    # A verdict is on what runs now, and not on a text.
    refused = [o for o in checked if o.exit != 0 and o.answer is None]
    if refused:
        result['changed'] = False
        module.fail_json(msg='the text does not pass, and nothing was changed: ' + failure(refused), **result)
    if module.check_mode:
        module.exit_json(**result)
    if before != after:
        write(module, path, after)
    rc, done = aaunitctl.outcomes('apply', path)
    done = [o for o in done if o.name != path and o.name not in later]
    result['waiting'] = [o.name for o in done if o.waits_for(later)]
    done = [o for o in done if o.name not in result['waiting']]
    result['changed'] = before != after or any(o.changed for o in done)
    result['units'] = [o.result() for o in done]
    result['verified'] = confined(done) and not result['waiting']
    if any(o.exit != 0 for o in done):
        if module.params['verify'] or any(o.document.get('reasons') or o.document.get('undone') for o in done):
            module.fail_json(msg=failure(done), **result)
        module.warn(failure(done))
    module.exit_json(**result)


def remove(module, aaunitctl, path, before):
    result = dict(path=path, changed=before is not None, verified=False, units=[], diff=difference(path, before, None))
    rc, report = aaunitctl.ask('status')
    gone = ['%s/%s.conf' % (ATTACHMENTS, name) for name in module.params['detached']] if module.check_mode else []
    users = [
        u.get('unit', '') for u in (report.get('units') or []) + (report.get('patterns') or [])
        if u.get('profileFile') == path and u.get('attachment') not in gone
    ]
    if before is not None and not report.get('version'):
        # Where AppArmor is off aaunitctl says that, without the daemon.
        result['changed'] = False
        module.fail_json(msg='cannot remove %s: aaunitd did not say what runs under it; see systemctl status aaunitd' % path, **result)
    if users and before is not None:
        result['changed'] = False
        module.fail_json(msg='cannot remove %s: %s runs under it; detach it first' % (path, ', '.join(users)), **result)
    if before is not None and not module.check_mode:
        os.unlink(path)
    module.exit_json(**result)


if __name__ == '__main__':
    main()
