/* A word in the middle of code that a test changes: its lowest bit tells whether a payload marks. */
#ifndef WORD_H
#define WORD_H

static inline int is_loud(void) {
	unsigned long word;
	__asm__ volatile("movabs $0xc0de5e771edbeef0, %0" : "=r"(word));
	return word & 1;
}

#endif
