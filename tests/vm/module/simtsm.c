// SPDX-License-Identifier: GPL-2.0-only
/*
 * simtsm: TEST ONLY. A configfs-tsm provider named "tdx_guest" and, where the kernel has tsm-mr (6.16+), the measurement
 * registers of a TD. Not an enclave; proves nothing. Quotes are signed by whoever reads /dev/simtsm_qe, which stands for
 * TDX module and quoting enclave: it is given what a TDREPORT says, so the registers' truth is this module's.
 * Every fault is a parameter that root may write at run time. Behaves like drivers/virt/coco/tdx-guest otherwise.
 */
#define pr_fmt(fmt) "simtsm: " fmt
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/hex.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/tsm.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>

#define MR 48			/* bytes, SHA-384 */
#define REPORTDATA 64
#define MAX_QUOTE SZ_1M
#define ANSWER_S 30		/* as the driver's getquote_timeout */

/* What a TD is launched with: hex, set once. */
static char *provider = "tdx_guest";
module_param(provider, charp, 0444);
static char *mrtd, *mrconfigid, *rtmr0, *rtmr1, *rtmr2;
module_param(mrtd, charp, 0444);
module_param(mrconfigid, charp, 0444);
module_param(rtmr0, charp, 0444);
module_param(rtmr1, charp, 0444);
module_param(rtmr2, charp, 0444);

/* Faults of the quote device. */
static int fail_errno;		/* report_new() returns -fail_errno, */
module_param(fail_errno, int, 0644);
static int fail_times;		/* this many times; 0: for ever */
module_param(fail_times, int, 0644);
static int delay_ms;		/* the host takes this long, */
module_param(delay_ms, int, 0644);
static bool uninterruptible;	/* and not even SIGKILL ends the wait */
module_param(uninterruptible, bool, 0644);
static bool stale;		/* the quote is over another REPORTDATA */
module_param(stale, bool, 0644);
static bool garbage;		/* a blob of 0xa5 instead of a quote, as long as it */
module_param(garbage, bool, 0644);
static int blob_len = -1;	/* bytes of the blob, cut or padded with zeros; negative: its own */
module_param(blob_len, int, 0644);

/* Faults of the registers. */
static int extend_errno;	/* a write returns -extend_errno, and extends nothing */
module_param(extend_errno, int, 0644);
static bool extend_nothing;	/* a write succeeds, and extends nothing */
module_param(extend_nothing, bool, 0644);
static bool extend_twice;	/* somebody else extends right after it */
module_param(extend_twice, bool, 0644);
static int read_errno;		/* a read after a write returns -read_errno */
module_param(read_errno, int, 0644);

struct tdreport {		/* what the signer reads, in this order */
	u8 reportdata[REPORTDATA];
	u8 mrtd[MR], mrconfigid[MR], rtmr0[MR], rtmr1[MR], rtmr2[MR], rtmr3[MR];
} __packed;

static struct tdreport td;

/* -- the signer */

static DEFINE_MUTEX(qe_lock);	/* of the four below */
static struct tdreport question;
static void *answer;
static size_t answer_len;
static bool in_flight;		/* the host owns the buffer */
static DECLARE_COMPLETION(asked);
static DECLARE_COMPLETION(answered);

static ssize_t qe_read(struct file *file, char __user *to, size_t size, loff_t *offset)
{
	struct tdreport copy;

	if (size < sizeof(copy))
		return -EINVAL;
	if (wait_for_completion_interruptible(&asked))
		return -EINTR;
	mutex_lock(&qe_lock);
	copy = question;
	mutex_unlock(&qe_lock);
	return copy_to_user(to, &copy, sizeof(copy)) ? -EFAULT : sizeof(copy);
}

static ssize_t qe_write(struct file *file, const char __user *from, size_t size, loff_t *offset)
{
	void *quote;

	if (!size || size > MAX_QUOTE)
		return -EINVAL;
	quote = kvmalloc(size, GFP_KERNEL);
	if (!quote)
		return -ENOMEM;
	if (copy_from_user(quote, from, size)) {
		kvfree(quote);
		return -EFAULT;
	}
	mutex_lock(&qe_lock);
	kvfree(answer);
	answer = quote;
	answer_len = size;
	in_flight = false;
	complete(&answered);
	mutex_unlock(&qe_lock);
	return size;
}

static const struct file_operations qe_fops = { .owner = THIS_MODULE, .read = qe_read, .write = qe_write };
static struct miscdevice qe_device = {
	.minor = MISC_DYNAMIC_MINOR, .name = "simtsm_qe", .fops = &qe_fops, .mode = 0600,
};

/* -- the provider. report_new() is called under configfs-tsm's lock, one at a time. */

static int ask_signer(const u8 *reportdata)
{
	long left;
	int rc = 0;

	mutex_lock(&qe_lock);
	if (in_flight) {
		rc = -EBUSY;
	} else {
		question = td;
		memcpy(question.reportdata, reportdata, REPORTDATA);
		if (stale)
			question.reportdata[0] ^= 0xff;
		reinit_completion(&answered);
		in_flight = true;
	}
	mutex_unlock(&qe_lock);
	if (rc)
		return rc;
	complete(&asked);
	left = wait_for_completion_interruptible_timeout(&answered, ANSWER_S * HZ);
	return left < 0 ? -EINTR : left ? 0 : -ETIMEDOUT;
}

static int take_answer(struct tsm_report *report)
{
	size_t len = blob_len < 0 ? answer_len : min_t(size_t, blob_len, MAX_QUOTE);
	u8 *blob = kvzalloc(len ?: 1, GFP_KERNEL);

	if (!blob)
		return -ENOMEM;
	mutex_lock(&qe_lock);
	if (garbage)
		memset(blob, 0xa5, len);
	else
		memcpy(blob, answer, min(len, answer_len));
	mutex_unlock(&qe_lock);
	kvfree(report->outblob);	/* of an earlier generation */
	report->outblob = blob;
	report->outblob_len = len;
	return 0;
}

static int sim_report_new(struct tsm_report *report, void *data)
{
	int rc = fail_errno;

	if (rc) {
		if (fail_times && !--fail_times)
			fail_errno = 0;
		return -rc;
	}
	if (report->desc.inblob_len != REPORTDATA)
		return -EINVAL;
	if (uninterruptible)
		msleep(delay_ms);
	else if (delay_ms && msleep_interruptible(delay_ms))
		return -EINTR;
	rc = ask_signer(report->desc.inblob);
	return rc ?: take_answer(report);
}

static bool sim_attr_visible(int n)
{
	return n == TSM_REPORT_GENERATION || n == TSM_REPORT_PROVIDER;
}

static bool sim_bin_attr_visible(int n)
{
	return n == TSM_REPORT_INBLOB || n == TSM_REPORT_OUTBLOB;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
#define tsm_ops tsm_report_ops
#define tsm_register tsm_report_register
#define tsm_unregister tsm_report_unregister
#endif
static struct tsm_ops sim_ops = {
	.report_new = sim_report_new,
	.report_attr_visible = sim_attr_visible,
	.report_bin_attr_visible = sim_bin_attr_visible,
};

/* -- the registers */

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0) && IS_ENABLED(CONFIG_TSM_MEASUREMENTS)
#include <crypto/hash.h>
#include <linux/tsm-mr.h>

#define FIXED(m) { .mr_value = &td.m, TSM_MR_(m, SHA384) | TSM_MR_F_NOHASH }
#define RTMR(m) { .mr_value = &td.m, TSM_MR_(m, SHA384) | TSM_MR_F_RTMR }
static const struct tsm_measurement_register registers[] = {
	FIXED(mrconfigid),
	{ .mr_value = &td.mrtd, TSM_MR_(mrtd, SHA384) },
	RTMR(rtmr0), RTMR(rtmr1), RTMR(rtmr2), RTMR(rtmr3),
};

static int extend(u8 *value, const u8 *digest)
{
	struct crypto_shash *sha384 = crypto_alloc_shash("sha384", 0, 0);
	u8 both[2 * MR];
	int rc;

	if (IS_ERR(sha384))
		return PTR_ERR(sha384);
	memcpy(both, value, MR);
	memcpy(both + MR, digest, MR);
	rc = crypto_shash_tfm_digest(sha384, both, sizeof(both), value);
	crypto_free_shash(sha384);
	return rc;
}

static int sim_extend(const struct tsm_measurements *tm, const struct tsm_measurement_register *mr, const u8 *digest)
{
	int rc;

	if (extend_errno)
		return -extend_errno;
	if (extend_nothing)
		return 0;
	rc = extend(mr->mr_value, digest);
	return rc || !extend_twice ? rc : extend(mr->mr_value, digest);
}

static int sim_refresh(const struct tsm_measurements *tm)
{
	return -read_errno;
}

static const struct tsm_measurements measurements = {
	.mrs = registers, .nr_mrs = ARRAY_SIZE(registers), .refresh = sim_refresh, .write = sim_extend,
};
static const struct attribute_group *groups[2];
static struct miscdevice tdx_device = { .name = "tdx_guest", .minor = MISC_DYNAMIC_MINOR, .groups = groups };

static int registers_init(void)
{
	const struct attribute_group *group = tsm_mr_create_attribute_group(&measurements);
	int rc;

	if (IS_ERR(group))
		return PTR_ERR(group);
	groups[0] = group;
	rc = misc_register(&tdx_device);
	if (rc)
		tsm_mr_free_attribute_group(group);
	return rc;
}

static void registers_exit(void)
{
	misc_deregister(&tdx_device);
	tsm_mr_free_attribute_group(groups[0]);
}
#else
static int registers_init(void) { return 0; }
static void registers_exit(void) { }
#endif

/* -- what /proc/cpuinfo says, and nothing else in the kernel asks at run time */

static void say_tdx_guest(bool yes)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		unsigned long *flags = (unsigned long *)cpu_data(cpu).x86_capability;

		if (yes)
			set_bit(X86_FEATURE_TDX_GUEST, flags);
		else
			clear_bit(X86_FEATURE_TDX_GUEST, flags);
	}
}

static int __init from_hex(u8 *to, const char *hex)
{
	return hex && (strlen(hex) != 2 * MR || hex2bin(to, hex, MR)) ? -EINVAL : 0;
}

static int __init sim_init(void)
{
	int rc = from_hex(td.mrtd, mrtd) ?: from_hex(td.mrconfigid, mrconfigid) ?: from_hex(td.rtmr0, rtmr0) ?:
		 from_hex(td.rtmr1, rtmr1) ?: from_hex(td.rtmr2, rtmr2);

	if (rc)
		return rc;
	rc = registers_init();
	if (rc)
		return rc;
	sim_ops.name = provider;
	rc = tsm_register(&sim_ops, NULL);
	if (rc)
		goto no_provider;
	rc = misc_register(&qe_device);
	if (rc)
		goto no_signer;
	say_tdx_guest(true);
	pr_warn("SIMULATED provider \"%s\": proves nothing\n", provider);
	return 0;

no_signer:
	tsm_unregister(&sim_ops);
no_provider:
	registers_exit();
	return rc;
}

static void __exit sim_exit(void)
{
	say_tdx_guest(false);
	misc_deregister(&qe_device);
	tsm_unregister(&sim_ops);
	registers_exit();
	kvfree(answer);
}

module_init(sim_init);
module_exit(sim_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("TEST ONLY: simulated configfs-tsm provider and TD registers");
