// What happens, said to those who cannot see it: one quiet live region for the whole page.

/** Say a sentence. */
export function tell(sentence) {
  document.getElementById("told").textContent = sentence;
}
