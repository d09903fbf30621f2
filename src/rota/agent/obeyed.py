"""Environment variables that have programs run or load something else than their arguments say.

The first two lines are those of ld.so(8) and of the shells; with the third they hold what sudo takes from
everybody's environment (`initial_badenv_table` in its env.c). Then come interpreters, and common programs
that scripts call. The list can never be complete: each program has such variables of its own.
"""

import re

_OBEYED = re.compile(
    r"LD_\w+|GLIBC_TUNABLES|GCONV_PATH|GETCONF_DIR|LOCPATH|NLSPATH"
    r"|PATH|HOME|SHELL|ENV|BASH_.*|BASHOPTS|SHELLOPTS|PS4|IFS|CDPATH|GLOBIGNORE|FPATH|ZDOTDIR|(READ)?NULLCMD"
    r"|LOCALDOMAIN|RES_OPTIONS|HOSTALIASES|KRB5\w*|TERMINFO\w*|TERMCAP|TERMPATH|OPENSSL_\w+|XDG_\w+"
    r"|PYTHON\w*|PERL\w*|RUBY(OPT|LIB|SHELL)|GEM_(HOME|PATH)|BUNDLE_\w+|NODE_(OPTIONS|PATH)|AWK(LIB)?PATH"
    r"|LUA_(INIT|PATH|CPATH)\w*|PHPRC|PHP_INI_SCAN_DIR|(_|JDK_)JAVA_OPTIONS|JAVA_TOOL_OPTIONS|CLASSPATH"
    r"|R_(HOME|LIBS|PROFILE|ENVIRON)\w*|JULIA_\w+|TCL\w+"
    r"|GIT_\w+|EDITOR|VISUAL|BROWSER|\w*PAGER|LESS(OPEN|CLOSE)|MAKEFLAGS|MAKEFILES|TAR_OPTIONS|RSYNC_RSH"
)


def obeyed(name: str) -> bool:
    """Whether this variable is one of them."""
    return _OBEYED.fullmatch(name) is not None
