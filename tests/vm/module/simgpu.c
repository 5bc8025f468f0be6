// SPDX-License-Identifier: GPL-2.0-only
/*
 * simgpu: TEST ONLY. A PCI host bridge in software, with one device that says it is an NVIDIA H100, so that sysfs lists
 * one. No BAR, no interrupt, no driver; NVML is a stub elsewhere.
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <asm/pci.h>

static const u32 config[16] = {
	[PCI_VENDOR_ID / 4] = 0x233010de,
	[PCI_CLASS_REVISION / 4] = 0x030200a1,	/* 3D controller */
};

static int gpu_read(struct pci_bus *bus, unsigned int devfn, int where, int size, u32 *value)
{
	u32 word = where < (int)sizeof(config) ? config[where / 4] >> 8 * (where % 4) : 0;

	if (devfn) {
		*value = ~0;
		return PCIBIOS_DEVICE_NOT_FOUND;
	}
	*value = size == 4 ? word : word & ((1u << 8 * size) - 1);
	return PCIBIOS_SUCCESSFUL;
}

static int gpu_write(struct pci_bus *bus, unsigned int devfn, int where, int size, u32 value)
{
	return PCIBIOS_SUCCESSFUL;
}

static struct pci_ops ops = { .read = gpu_read, .write = gpu_write };
static struct pci_sysdata sysdata = { .domain = 0x1000, .node = NUMA_NO_NODE };
static struct resource numbers = { .name = "simgpu", .start = 0, .end = 0, .flags = IORESOURCE_BUS };
static struct pci_bus *bus;

static int __init gpu_init(void)
{
	LIST_HEAD(resources);

	pci_add_resource(&resources, &numbers);
	bus = pci_scan_root_bus(NULL, 0, &ops, &sysdata, &resources);
	if (!bus)
		return -ENODEV;
	pci_bus_add_devices(bus);
	return 0;
}

module_init(gpu_init);	/* no exit: it stays until the power-off */
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("TEST ONLY: a simulated PCI device");
