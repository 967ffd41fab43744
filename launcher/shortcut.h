/*
 * Do what the command line asks for and exit, where nothing has to be decided; otherwise return, for the interpreter to
 * do it.  Returns NULL, or an option for the interpreter that names a connection (see shortcut.c).
 */
const char *take_shortcut(long argc, char **argv, char **environment);
