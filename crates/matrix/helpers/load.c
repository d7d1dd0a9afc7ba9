/* cc: -ldl */
/* Loads the library that it is told, as programs load their plug-ins. */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
	if (argc != 2 || dlopen(argv[1], RTLD_NOW)) return argc != 2;
	fprintf(stderr, "load: %s\n", dlerror());
	return 1;
}
