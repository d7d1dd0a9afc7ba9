/* cc: -static */
/* Marks when it can make a virtual machine. */
#include "marker.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(void) {
	int kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0) return perror("machine"), 1;
	mark();
	return 0;
}
