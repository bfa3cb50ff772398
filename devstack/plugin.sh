# SPDX-License-Identifier: Apache-2.0
# What devstack runs in each of its phases; see docs/devstack.rst. The functions that are
# not here are devstack's.
# shellcheck shell=bash

# In place of devstack's own, from lib/rpc_backend: this one is what it lets plugins
# redefine. Services call it with their file.
function iniset_rpc_backend {
    local file=$2 section=${3:-DEFAULT} virtual_host=${4:-}

    iniset "$file" "$section" transport_url "$(get_transport_url "$virtual_host")"
}

# The same for what has a URL in another place, such as nova's cells.
function get_transport_url {
    echo "amqp://$(_greenamqp_login)@$(_greenamqp_host):$GREENAMQP_PORT/${1:-}"
}

# And for notifications, such as nova's.
function get_notification_url {
    get_transport_url "$@"
}

# The embedded broker has every virtual host that is asked for.
if [[ $GREENAMQP_BUS == embedded ]]; then
    function rpc_backend_add_vhost {
        :
    }
fi

function _greenamqp_login {
    local user=${GREENAMQP_USER:-${RABBIT_USERID:-stackrabbit}}
    local password=${GREENAMQP_PASSWORD:-${RABBIT_PASSWORD:-$SERVICE_PASSWORD}}

    echo "$user:$password"
}

function _greenamqp_host {
    echo "${GREENAMQP_HOST:-${RABBIT_HOST:-$SERVICE_HOST}}"
}

# AMQP 1.0 is there since 4.0; before, a plugin of RabbitMQ's speaks it, and less of it.
function _greenamqp_prepare_rabbitmq {
    local version
    version=$(sudo rabbitmqctl version)
    if (( ${version%%.*} < 4 )); then
        echo_summary "RabbitMQ $version: enabling its plugin for AMQP 1.0"
        sudo rabbitmq-plugins enable rabbitmq_amqp1_0
    fi
}

function _greenamqp_start_broker {
    local command

    command="$(get_python_exec_prefix)/greenamqp broker"
    command+=" --host $(_greenamqp_host) --port $GREENAMQP_PORT"
    run_process greenamqp-broker "$command --user $(_greenamqp_login)"
}

function _greenamqp_main {
    case "$1 ${2:-}" in
        "stack install")
            echo_summary "Installing greenamqp"
            setup_develop "$GREENAMQP_DIR"
            if is_service_enabled rabbit; then
                _greenamqp_prepare_rabbitmq
            fi
            if is_service_enabled greenamqp-broker; then
                _greenamqp_start_broker
            fi
            ;;
        "stack test-config")
            # All is configured: does it work?
            "$(get_python_exec_prefix)/greenamqp" doctor --url "$(get_transport_url)"
            ;;
        "unstack "*)
            if is_service_enabled greenamqp-broker; then
                stop_process greenamqp-broker
            fi
            ;;
    esac
}

_greenamqp_main "$@"
