// What the events of an operation amount to, as plain values: no element and no request in here.

export class Progress {
  /** What is being done now, in the daemon's word; null before the first event. */
  phase = null;
  /** How many pulls are to be done before this one; null once it is its turn. */
  ahead = null;
  digest = null;
  doneBytes = 0;
  totalBytes = null;
  /** Of a prune, how many things are done, and of how many; null of all else. */
  counts = null;
  /** Each blob by its digest, in the order of their first events. */
  blobs = new Map();
  messages = [];

  /** Take one event; those of a kind that is not known say nothing. */
  take(event) {
    const taking = {
      waiting: () => { this.ahead = event.ahead; },
      resolved: () => { this.digest = event.digest; },
      blob: () => this.#takeBlob(event),
      progress: () => {
        if (event.phase !== "waiting") this.ahead = null;
        this.phase = event.phase;
        this.doneBytes = event.done_bytes;
        this.totalBytes = event.total_bytes;
        this.counts = event.total_count === undefined ? null : [event.done_count, event.total_count];
      },
      message: () => { this.messages.push(event.text); },
    };
    taking[event.event]?.();
  }

  /** Between 0 and 1; null where nobody knows. */
  get part() {
    // Things without bytes are work, too; and before all is looked at, nobody knows the bytes.
    const [done, total] = this.counts ?? this.#sums();
    return total ? Math.min(1, done / total) : null;
  }

  /** How many bytes are done, and of how many; the second is null where nobody knows. */
  get bytes() {
    return this.#sums();
  }

  /** How many bytes earlier attempts had brought already. */
  get resumedBytes() {
    return [...this.blobs.values()].reduce((sum, blob) => sum + blob.resumedBytes, 0);
  }

  #sums() {
    if (this.totalBytes !== null || !this.blobs.size) return [this.doneBytes, this.totalBytes];
    const blobs = [...this.blobs.values()];
    return [blobs.reduce((sum, each) => sum + each.doneBytes, 0), blobs.reduce((sum, each) => sum + each.sizeBytes, 0)];
  }

  #takeBlob(event) {
    this.ahead = null;
    const known = this.blobs.get(event.digest);
    const isThere = event.phase === "present" || event.phase === "stored";
    const sizeBytes = event.size_bytes ?? known?.sizeBytes ?? 0;
    this.blobs.set(event.digest, {
      digest: event.digest,
      role: event.role ?? known?.role ?? "blob",
      position: event.position ?? known?.position ?? null,
      total: event.total ?? known?.total ?? null,
      phase: event.phase,
      sizeBytes,
      doneBytes: isThere ? sizeBytes : event.done_bytes ?? known?.doneBytes ?? 0,
      resumedBytes: event.resumed_bytes ?? known?.resumedBytes ?? 0,
      attempt: event.attempt ?? known?.attempt ?? 1,
      wasPresent: event.phase === "present" || (known?.wasPresent ?? false),
    });
  }
}
