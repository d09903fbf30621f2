#!/bin/sh
# The options of `rota submit` in lines of the script, ahead of its first command. The text of the script
# travels with the job: it need not be on the node. What the command line says comes before these lines.
#
#   rota submit --wait script.sh one two
#
#ROTA --name script --cpu 0.5
#ROTA --array 0-2 --env COLOUR=blue
#ROTA --time-limit 1m

echo "task $ROTA_TASK_INDEX: $COLOUR, $# arguments: $*"
