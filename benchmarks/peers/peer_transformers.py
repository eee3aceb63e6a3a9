"""Hugging Face Trainer: its guide to image classification, on EfficientNet-Lite0 from a local timm folder.

RandomResizedCrop, batch 16 × 4 accumulated, AdamW, linear decay after 10 % warm-up, validated after each epoch on a
tenth of the training pictures, the best epoch kept. `--variant` is the learning rate; the guide's own is 5e-5, for
a vision transformer.
"""

from __future__ import annotations

import peer_tools as tools

VALID, BATCH = 0.1, 16


def main() -> None:
    """Fine-tune until the plan is done or the time is up, then predict."""
    job = tools.job()
    import numpy as np
    import torch
    from torchvision import transforms
    from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, TrainingArguments, set_seed

    set_seed(job.seed)
    model = AutoModelForImageClassification.from_pretrained(
        job.weights.parent, num_labels=len(job.classes), ignore_mismatched_sizes=True
    )
    size, epochs, reserve = tools.planned(job, tools.pace(tools.lite0(job, num_classes=0), BATCH), share=1 - VALID)

    class Deadline(TrainerCallback):
        """Ends the training when only the time for test is left."""

        def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
            control.should_training_stop |= job.left() <= 1.3 * reserve

    half = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    augmented = transforms.Compose([transforms.RandomResizedCrop(size), transforms.ToTensor(), half])
    rows = np.random.default_rng(job.seed).permutation(len(job.train)).tolist()
    held_out, kept = rows[: round(VALID * len(rows))], rows[round(VALID * len(rows)) :]
    files = job.train
    parts = (
        tools.Pictures([files[row] for row in kept], augmented),
        tools.Pictures([files[row] for row in held_out], tools.transform(size)),
        tools.Pictures([(path, 0) for path in job.test], tools.transform(size)),
    )
    arguments = TrainingArguments(
        output_dir=str(job.out.parent / "trainer"),
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        learning_rate=float(job.variant),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=4,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=epochs,
        warmup_steps=0.1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to=[],
        seed=job.seed,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=lambda rows: {
            "pixel_values": torch.stack([pixels for pixels, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        },
        train_dataset=parts[0],
        eval_dataset=parts[1],
        compute_metrics=lambda found: {"accuracy": float((found[0].argmax(1) == found[1]).mean())},
        callbacks=[Deadline()],
    )
    trainer.train()
    found = trainer.predict(parts[2]).predictions.argmax(1)
    facts = {"image_size": size, "epochs_planned": epochs, "epochs": round(float(trainer.state.epoch or 0), 2)}
    job.answer([job.classes[label] for label in found.tolist()], facts)


if __name__ == "__main__":
    main()
