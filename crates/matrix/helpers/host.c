/* cc: -static */
/* host FILE: does what FILE says, as hosts of macros and plug-ins do: `mark`, or `run PROGRAM`. */
#include "marker.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
	char line[4096];
	FILE *file = argc == 2 ? fopen(argv[1], "r") : 0;
	if (!file || !fgets(line, sizeof line, file)) return 1;
	line[strcspn(line, "\n")] = 0;
	if (!strcmp(line, "mark")) return mark(), 0;
	if (strncmp(line, "run ", 4)) return 1;
	execl(line + 4, line + 4, (char *)0);
	perror(line + 4);
	return 2;
}
