#!/usr/bin/python
# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
module: attachment
short_description: Confine systemd services with an AppArmor profile, and see it proved
version_added: "0.1.0"
author:
  - The aaunit authors (@aaunit)
description:
  - Manages one attachment file in C(/etc/aaunit/attachments.d), which says which units run under which AppArmor profile.
  - Waits until aaunitd has acted on it, and fails unless every unit of it is seen confined. One that does not run is not, see I(verify).
    Units that run are restarted, unless I(restart_unit=false).
  - What would come of the file is asked before it is written. A file that aaunitd would refuse is not written.
  - What a key means and what its default is, is told by aaunit.conf(5). A key that is not given is left out of the file.
requirements:
  - the package aaunit on the host
options:
  name:
    description:
      - Name of the attachment file, without C(.conf).
    type: str
    required: true
  state:
    description:
      - C(present) attaches the units, C(absent) removes the file and so detaches them.
    type: str
    choices: [present, absent]
    default: present
  unit:
    description:
      - The units, one C(Unit=) line each. Templates (C(agent@.service)), prefixes (C(agent-.service)) and shell patterns are for units to come as well.
      - Needed for I(state=present).
    type: list
    elements: str
  profile:
    description:
      - C(Profile=), the internal name of the profile, in which systemd's specifiers may stand.
      - Needed for I(state=present).
    type: str
  profile_file:
    description:
      - C(ProfileFile=), the file of the profile where it is not directly in C(/etc/apparmor.d).
    type: path
  private_tmp:
    description:
      - C(PrivateTmp=).
    type: str
    choices: ["yes", "no", disconnected]
  mode:
    description:
      - C(Mode=). Units in C(complain) mode are not confined, so use I(verify=false) with it.
    type: str
    choices: [enforce, complain]
  restart_unit:
    description:
      - C(RestartUnit=), whether units that run without the profile are restarted.
    type: bool
  on_failed_attach:
    description:
      - C(OnFailedAttach=), what becomes of a unit that does not come up confined and healthy.
    type: str
    choices: [undo, stop, keep]
  on_violation:
    description:
      - C(OnViolation=), what becomes of a running unit that is found not confined.
    type: str
    choices: [report, stop]
  on_profile_change:
    description:
      - C(OnProfileChange=), what becomes of a changed text of the profile.
    type: str
    choices: [load, report]
  allow_profiles:
    description:
      - C(AllowProfiles=), other profiles that tasks of the units may carry.
    type: list
    elements: str
  settle_sec:
    description:
      - C(SettleSec=), how long a unit must stay healthy after its restart, such as C(5s).
    type: str
  assertions:
    description:
      - The section C([Assertions]), what the policy must pass before it goes live.
    type: dict
    suboptions:
      deny:
        description:
          - C(Deny=), what the policy must not allow, such as C(write /etc/**).
        type: list
        elements: str
      allow:
        description:
          - C(Allow=), what the policy must allow, such as C(network inet stream).
        type: list
        elements: str
      waive:
        description:
          - C(Waive=), built-in assertions that do not count for these units.
        type: list
        elements: dict
        suboptions:
          code:
            description:
              - Code of the assertion, such as C(policy-may-leave-profile).
            type: str
            required: true
          reason:
            description:
              - Why it does not count.
            type: str
            required: true
  socket_options:
    description:
      - The section C([SocketOptions]), which socket options the units may set and read.
      - An empty dictionary records which they use. A change takes effect without a restart.
    type: dict
    suboptions:
      mode:
        description:
          - C(Mode=), whether options are only recorded, or those not on the list refused.
        type: str
        choices: [record, enforce, "off"]
      required:
        description:
          - C(Required=), whether a unit counts as confined, and starts, only where its options can be held to the list.
        type: bool
      allow:
        description:
          - C(Allow=), options that may be set.
        type: list
        elements: dict
        suboptions: &listed
          option:
            description:
              - Name of the option, such as C(SOL_TCP:TCP_NODELAY) or C(SO_REUSEADDR), or two numbers (C(6:1)).
            type: str
            required: true
          reason:
            description:
              - Why it is needed, in words that somebody understands in a year.
            type: str
            required: true
      allow_get:
        description:
          - C(AllowGet=), options that may be read. Without any, all may.
        type: list
        elements: dict
        suboptions: *listed
  profiles:
    description:
      - Profiles that a task before this one installs, each a dictionary with C(name) and C(content) as of M(aaunit.core.profile).
        In check mode they are not there yet, and what would be refused without them is asked as if they were.
    type: list
    elements: dict
    default: []
  attachments:
    description:
      - Attachments that tasks make or remove, in their order, each with the arguments of this module, for the same.
        One that comes behind the task's own counts as it is now.
      - What only units refuse that share the profile, and whose attachments behind this one change that, waits for these, see I(waiting).
    type: list
    elements: dict
    default: []
  verify:
    description:
      - Whether the task fails when a unit is not seen confined. A unit that does not run is not seen.
      - With C(false), what was not seen is a warning. An attach that fails, or that is refused, fails the task in any case.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Says what would be done, and fails where aaunitd would refuse it or a unit is found not confined now.
  diff_mode:
    support: full
    description: Shows the file, and what aaunitd would do.
notes:
  - In check mode a profile that does not exist yet and is not among I(profiles) is a warning, since a task before this one may be about to
    install it.
seealso:
  - module: aaunit.core.profile
  - module: aaunit.core.info
'''

EXAMPLES = r'''
- name: Confine the agents
  aaunit.core.attachment:
    name: agents
    unit:
      - agent@.service
    profile: agent-%i
    on_violation: stop
    assertions:
      deny:
        - write /etc/**
        - network unix
      waive:
        - code: policy-may-leave-profile
          reason: operators log in through it

- name: Attach a service whose next start is somebody else's business
  aaunit.core.attachment:
    name: batch
    unit: batch.service
    profile: batch
    restart_unit: false
    verify: false

- name: Record which socket options a service uses
  aaunit.core.attachment:
    name: gateway
    unit: gateway.service
    profile: gateway
    socket_options:
      mode: record

- name: Refuse it all others
  aaunit.core.attachment:
    name: gateway
    unit: gateway.service
    profile: gateway
    socket_options:
      mode: enforce
      allow:
        - option: SOL_TCP:TCP_NODELAY
          reason: small answers go out at once
        - option: SO_REUSEADDR
          reason: a restart can bind again

- name: Let it go again
  aaunit.core.attachment:
    name: batch
    state: absent
'''

RETURN = r'''
path:
  description: The attachment file.
  returned: always
  type: str
  sample: /etc/aaunit/attachments.d/agents.conf
verified:
  description:
    - Whether every unit of the file was looked at in this task, and is confined.
    - In check mode, whether that is so now and nothing would be changed.
  returned: always
  type: bool
  sample: true
waiting:
  description:
    - Units for which nothing was done yet, since others that share the profile refuse its text until their attachments, which come behind
      this one in I(attachments), are there. The same task once more, behind those, waits for them.
  returned: always
  type: list
  elements: str
units:
  description: What was seen of each unit, or in check mode, what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    unit:
      description: The unit, template or prefix, or the file where it is about none.
      type: str
      returned: always
    profile:
      description: The profile's internal name.
      type: str
      returned: always
    answer:
      description: The verdict, C(confined), C(not-confined) or C(unknown), and none of a template, a prefix or a detached unit.
      type: str
      returned: always
    exit:
      description: What aaunitctl(1) exits with for the unit.
      type: int
      returned: always
    restarted:
      description: Whether the unit was restarted.
      type: bool
      returned: always
    undone:
      description: Whether the attach failed and was undone.
      type: bool
      returned: always
    reasons:
      description: What speaks against it, with codes of aaunit-reasons(7).
      type: list
      elements: str
      returned: always
    notes:
      description: What else is to be known.
      type: list
      elements: str
      returned: always
    actions:
      description: What would be done, in order.
      type: list
      elements: str
      returned: in check mode
'''

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_text
from ansible_collections.aaunit.core.plugins.module_utils.aaunitctl import (
    NOT_CONFINED, UNKNOWN, Aaunitctl, confined, difference, failure, read, write,
)
from ansible_collections.aaunit.core.plugins.module_utils.files import (
    ARGUMENTS, ATTACHMENTS as DIRECTORY, PROFILES, REQUIRED_IF, attachment_path, attachment_texts, profile_texts, render,
)


def acceptable(outcomes, verify):
    """Whether what was seen will do."""
    bad = [o for o in outcomes if o.exit != 0]
    if verify:
        return not bad
    return all(o.exit in (UNKNOWN, NOT_CONFINED) and not o.document.get('reasons') and not o.document.get('undone') for o in bad)


def ahead(name, attachments):
    """Those whose tasks come before the one of that name."""
    names = [a.get('name') for a in attachments]
    return attachments[:names.index(name)] if name in names else attachments


def main():
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            profiles=dict(type='list', elements='dict', default=[]),
            attachments=dict(type='list', elements='dict', default=[]),
        ),
        required_if=REQUIRED_IF,
        supports_check_mode=True,
    )
    try:
        path = attachment_path(DIRECTORY, module.params['name'])
        after = render(module.params) if module.params['state'] == 'present' else None
        others = profile_texts(PROFILES, module.params['profiles'])
        everything = dict(others, **attachment_texts(DIRECTORY, module.params['attachments']))
        others.update(attachment_texts(DIRECTORY, ahead(module.params['name'], module.params['attachments'])))
    except ValueError as e:
        module.fail_json(msg=to_text(e))

    aaunitctl = Aaunitctl(module)
    before = read(path)
    rc, planned = aaunitctl.propose(path, after)
    own = [o.name for o in planned]
    if module.check_mode and others and any(o.document.get('reasons') for o in planned):
        rc, together = aaunitctl.propose(path, after, others)
        planned = [o for o in together if o.name in own] or together
    refused = [o for o in planned if o.document.get('reasons')]
    later = []
    if any(any(o.objectors()) for o in refused):
        rc, together = aaunitctl.propose(path, after, everything)
        later = [o.name for o in together if o.name not in own and o.document.get('plan') is not None and not o.document.get('reasons')]
    waiting = [o for o in refused if o.waits_for(later)]
    refused = [o for o in refused if o not in waiting]
    result = dict(
        path=path,
        changed=before != after or any(o.changed for o in planned) or bool(waiting),
        verified=False,
        waiting=[o.name for o in waiting],
        units=[o.result() for o in planned],
        diff=difference(path, before, after, planned),
    )

    if module.check_mode:
        to_come = [o for o in refused if o.codes() == ['profile-not-found']]
        for o in to_come:
            module.warn(failure([o]))
        result['changed'] = result['changed'] or bool(to_come)
        judged = [o for o in planned if o not in to_come + waiting]
        result['verified'] = not result['changed'] and confined(planned)
        if not acceptable(judged, module.params['verify']):
            module.fail_json(msg=failure(judged), **result)
        module.exit_json(**result)
    if refused:
        result['changed'] = False
        module.fail_json(msg='nothing was changed: ' + failure(refused), **result)

    if before != after:
        if after is None:
            os.unlink(path)
        else:
            write(module, path, after)
    rc, done = aaunitctl.outcomes('apply', path)
    if after is None:
        # That aaunitd never knew the file (exit status 4) is what is wanted.
        done = [o for o in done if o.name != path or o.exit != 4]
    result['waiting'] = [o.name for o in done if o.waits_for(later)]
    done = [o for o in done if o.name not in result['waiting']]
    result['changed'] = before != after or any(o.changed for o in done)
    result['units'] = [o.result() for o in done]
    result['verified'] = after is not None and confined(done) and not result['waiting']
    if not acceptable(done, module.params['verify']):
        module.fail_json(msg=failure(done), **result)
    for o in done:
        if o.exit != 0:
            module.warn(failure([o]))
    module.exit_json(**result)


if __name__ == '__main__':
    main()
