// SPDX-License-Identifier: GPL-2.0
/*
 * Interrupt sources behind vectors of the ivshmem device (docs/gateway.md, G6).
 *
 * With FEATURE_DIRECT a source is directed to a vector that it may share with others; without it
 * all are behind vector 1, and H_XIRR says which one it is.
 */
#include <linux/slab.h>

#include "gateway.h"

#define SOURCES_AT_ONCE	64	/* that the line is asked for in one interrupt */

static irqreturn_t call_interrupt(int irq, void *data)
{
	struct gateway *gate = data;

	gate_reap(gate);
	wake_up_all(&gate->wait);
	return IRQ_HANDLED;
}

static void handle(struct gate_vector *vector, bool any, u32 number)
{
	struct vvio_source *source;

	spin_lock(&vector->lock);
	list_for_each_entry(source, &vector->sources, node)
		if (any || source->number == number)
			source->handler(source);
	spin_unlock(&vector->lock);
}

static irqreturn_t source_interrupt(int irq, void *data)
{
	handle(data, true, 0);
	return IRQ_HANDLED;
}

/* One source: whether there may be more, 0, or -EBUSY when the hypervisor does not answer now. */
static int ask_line(struct gate_vector *vector)
{
	struct gateway *gate = vector->gate;
	struct vvio_hv *hv = &gate->hv;
	u64 results[VVIO_REGISTERS];

	if (!gate->owed) {
		if (hv->ops->call(hv, false, PAPR_XIRR, NULL, 0, results))
			return -EBUSY;
		if (!(results[0] & 0xffffff))
			return 0;
		gate->owed = results[0];
	}
	/* pulses are lost until it is ended: so the handler looks after that */
	if (vvio_call_atomic(hv, PAPR_EOI, gate->owed) > 0)
		return -EBUSY;
	handle(vector, false, gate->owed & 0xffffff);
	gate->owed = 0;
	return 1;
}

/* PAPR's presentation: the number in the low 24 bits of XIRR, 0 for nothing. */
static void ask(struct gateway *gate)
{
	unsigned int left = SOURCES_AT_ONCE;
	unsigned long flags;
	int more;

	spin_lock_irqsave(&gate->line_lock, flags);
	do
		more = ask_line(&gate->vector[GATE_LINE_VECTOR]);
	while (more > 0 && --left);
	spin_unlock_irqrestore(&gate->line_lock, flags);
	if (more && !READ_ONCE(gate->hv.dead))
		mod_timer(&gate->line, jiffies + 1);	/* what it had to tell it tells once only */
}

static void ask_again(struct timer_list *timer)
{
	struct gateway *gate = from_timer(gate, timer, line);

	ask(gate);
}

static irqreturn_t line_interrupt(int irq, void *data)
{
	struct gate_vector *vector = data;

	ask(vector->gate);
	return IRQ_HANDLED;
}

static struct gate_vector *least_used(struct gateway *gate)
{
	struct gate_vector *best = NULL;
	unsigned int i;

	for (i = GATE_FIRST_SOURCE; i < gate->vectors; i++)
		if (!best || gate->vector[i].count < best->count)
			best = &gate->vector[i];
	return best;
}

static void listen(struct gate_vector *vector, struct vvio_source *source)
{
	unsigned long flags;

	spin_lock_irqsave(&vector->lock, flags);
	list_add_tail(&source->node, &vector->sources);
	vector->count++;
	spin_unlock_irqrestore(&vector->lock, flags);
	source->private = vector;
}

static void ignore(struct gate_vector *vector, struct vvio_source *source)
{
	unsigned long flags;

	spin_lock_irqsave(&vector->lock, flags);
	list_del(&source->node);
	vector->count--;
	spin_unlock_irqrestore(&vector->lock, flags);
	synchronize_irq(vector->irq);
}

int gate_request_source(struct vvio_hv *hv, struct vvio_source *source)
{
	struct gateway *gate = to_gateway(hv);
	struct gate_vector *vector;

	if (gate->accepted & GATE_FEATURE_DIRECT) {
		vector = least_used(gate);
		if (vector) {
			listen(vector, source);
			if (!vvio_call(hv, GATE_DIRECT, source->number, vector - gate->vector))
				return 0;
			ignore(vector, source);
		}
	}
	listen(&gate->vector[GATE_LINE_VECTOR], source);
	return 0;
}

void gate_free_source(struct vvio_hv *hv, struct vvio_source *source)
{
	struct gate_vector *vector = source->private;

	if (!vector)
		return;
	/* of an adapter that was unplugged the source is unknown, which is as good */
	if (vector != &vector->gate->vector[GATE_LINE_VECTOR])
		vvio_call(hv, GATE_DIRECT, source->number, GATE_LINE_VECTOR);
	ignore(vector, source);
	source->private = NULL;
}

void gate_synchronize_source(struct vvio_hv *hv, struct vvio_source *source)
{
	struct gate_vector *vector = source->private;

	if (vector)
		synchronize_irq(vector->irq);
}

static irq_handler_t handler_of(unsigned int number)
{
	switch (number) {
	case GATE_CALL_VECTOR:
		return call_interrupt;
	case GATE_LINE_VECTOR:
		return line_interrupt;
	default:
		return source_interrupt;
	}
}

int gate_interrupts_init(struct gateway *gate)
{
	int wanted = le32_to_cpu(gate->header->vectors), found, i, err;

	spin_lock_init(&gate->line_lock);
	timer_setup(&gate->line, ask_again, 0);

	found = pci_alloc_irq_vectors(gate->pdev, GATE_FIRST_SOURCE, wanted, PCI_IRQ_MSIX);
	if (found < 0)
		return dev_err_probe(&gate->pdev->dev, found, "no interrupt vectors\n");
	gate->vector = kcalloc(found, sizeof(*gate->vector), GFP_KERNEL);
	if (!gate->vector) {
		pci_free_irq_vectors(gate->pdev);
		return -ENOMEM;
	}
	for (i = 0; i < found; i++) {
		struct gate_vector *vector = &gate->vector[i];

		vector->gate = gate;
		spin_lock_init(&vector->lock);
		INIT_LIST_HEAD(&vector->sources);
		vector->irq = pci_irq_vector(gate->pdev, i);
		err = request_irq(vector->irq, handler_of(i), 0, "virtio_vio",
				  i == GATE_CALL_VECTOR ? (void *)gate : (void *)vector);
		if (err) {
			gate_interrupts_exit(gate);
			return err;
		}
		gate->vectors = i + 1;
	}
	mod_timer(&gate->line, jiffies + 1);	/* for what came before somebody listened */
	return 0;
}

void gate_interrupts_exit(struct gateway *gate)
{
	unsigned int i;

	for (i = 0; i < gate->vectors; i++)
		disable_irq(gate->vector[i].irq);
	del_timer_sync(&gate->line);
	for (i = 0; i < gate->vectors; i++)
		free_irq(gate->vector[i].irq, i == GATE_CALL_VECTOR ? (void *)gate : (void *)&gate->vector[i]);
	gate->vectors = 0;
	pci_free_irq_vectors(gate->pdev);
	kfree(gate->vector);
	gate->vector = NULL;
}
