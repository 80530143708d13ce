# Copyright The aaunit authors
# SPDX-License-Identifier: Apache-2.0

"""The files that the modules write: their names and texts."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import os
import re

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.text.converters import to_text

PROFILES = '/etc/apparmor.d'
ATTACHMENTS = '/etc/aaunit/attachments.d'
HEADER = '# Managed by Ansible (aaunit.core.attachment): changes are overwritten.'

LISTED = dict(
    option=dict(type='str', required=True),
    reason=dict(type='str', required=True),
)

# The arguments that make an attachment, of a task or in a list of another one.
ARGUMENTS = dict(
    name=dict(type='str', required=True),
    state=dict(type='str', choices=['present', 'absent'], default='present'),
    unit=dict(type='list', elements='str'),
    profile=dict(type='str'),
    profile_file=dict(type='path'),
    private_tmp=dict(type='str', choices=['yes', 'no', 'disconnected']),
    mode=dict(type='str', choices=['enforce', 'complain']),
    restart_unit=dict(type='bool'),
    on_failed_attach=dict(type='str', choices=['undo', 'stop', 'keep']),
    on_violation=dict(type='str', choices=['report', 'stop']),
    on_profile_change=dict(type='str', choices=['load', 'report']),
    allow_profiles=dict(type='list', elements='str'),
    settle_sec=dict(type='str'),
    assertions=dict(type='dict', options=dict(
        deny=dict(type='list', elements='str'),
        allow=dict(type='list', elements='str'),
        waive=dict(type='list', elements='dict', options=dict(
            code=dict(type='str', required=True),
            reason=dict(type='str', required=True),
        )),
    )),
    socket_options=dict(type='dict', options=dict(
        mode=dict(type='str', choices=['record', 'enforce', 'off']),
        required=dict(type='bool'),
        allow=dict(type='list', elements='dict', options=LISTED),
        allow_get=dict(type='list', elements='dict', options=LISTED),
    )),
    verify=dict(type='bool', default=True),
)
REQUIRED_IF = [('state', 'present', ('unit', 'profile'))]


def boolean(value):
    return 'yes' if value else 'no'


def quoted(value):
    return '"%s"' % value


def waiver(value):
    return '%s %s' % (value['code'], value['reason'])


def option(value):
    return '%s %s' % (value['option'], value['reason'])


# The sections of an attachment file: parameter, key, how a value is written. The
# first section is made of the module's own parameters, others of a dictionary.
SECTIONS = [
    (None, 'Attachment', [
        ('unit', 'Unit', str),
        ('profile', 'Profile', str),
        ('profile_file', 'ProfileFile', str),
        ('private_tmp', 'PrivateTmp', str),
        ('mode', 'Mode', str),
        ('restart_unit', 'RestartUnit', boolean),
        ('on_failed_attach', 'OnFailedAttach', str),
        ('on_violation', 'OnViolation', str),
        ('on_profile_change', 'OnProfileChange', str),
        ('allow_profiles', 'AllowProfiles', quoted),
        ('settle_sec', 'SettleSec', str),
    ]),
    ('assertions', 'Assertions', [
        ('deny', 'Deny', str),
        ('allow', 'Allow', str),
        ('waive', 'Waive', waiver),
    ]),
    ('socket_options', 'SocketOptions', [
        ('mode', 'Mode', str),
        ('required', 'Required', boolean),
        ('allow', 'Allow', option),
        ('allow_get', 'AllowGet', option),
    ]),
]


def line(key, value):
    """One line of the file. What would be read as another line, or as part of the
    next one, is refused; all else is for aaunitd to judge."""
    if any(ord(c) < 0x20 or ord(c) == 0x7f for c in value):
        raise ValueError('cannot write %s=%r: it holds a line break or another control character' % (key, value))
    if value.endswith('\\'):
        raise ValueError('cannot write %s=%r: a backslash at its end would continue the line' % (key, value))
    if value.strip() != value or value == '':
        raise ValueError('cannot write %s=%r: it is empty, or begins or ends with white space' % (key, value))
    return '%s=%s' % (key, value)


def render(params):
    """The text of the attachment file."""
    lines = [HEADER]
    for parameter, section, keys in SECTIONS:
        values = params if parameter is None else params.get(parameter)
        if not values:
            continue
        lines += ['', '[%s]' % section] if len(lines) > 1 else ['[%s]' % section]
        for name, key, form in keys:
            value = values.get(name)
            if value is None:
                continue
            for v in value if isinstance(value, list) else [value]:
                lines.append(line(key, form(v)))
    return '\n'.join(lines) + '\n'


def attachment_path(directory, name):
    if not re.match(r'^[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,200}$', name) or name.endswith('.conf'):
        raise ValueError('cannot use the name %r: give that of the file without .conf, of letters, digits and _.@:-' % name)
    return os.path.join(directory, name + '.conf')


def attachment_texts(directory, attachments):
    """The texts of attachments by path, and None of one that is to be gone."""
    out = {}
    for attachment in attachments:
        checked = ArgumentSpecValidator(ARGUMENTS, required_if=REQUIRED_IF).validate(attachment)
        if checked.error_messages:
            raise ValueError('cannot use the attachment %s: %s' % (attachment.get('name'), '; '.join(checked.error_messages)))
        params = checked.validated_parameters
        out[attachment_path(directory, params['name'])] = render(params) if params['state'] == 'present' else None
    return out


def profile_path(directory, name):
    if not re.match(r'^[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,200}$', name):
        raise ValueError('cannot use the name %r: give that of a file in %s, of letters, digits and _.@:+-' % (name, directory))
    return os.path.join(directory, name)


def profile_text(path, content):
    if content.strip() == '':
        raise ValueError('cannot install %s: its text is empty' % path)
    return content if content.endswith('\n') else content + '\n'


def profile_texts(directory, profiles):
    """The texts by path of those that are to be there."""
    out = {}
    for profile in profiles:
        if profile.get('state', 'present') == 'present':
            path = profile_path(directory, to_text(profile.get('name') or ''))
            out[path] = profile_text(path, to_text(profile.get('content') or ''))
    return out
