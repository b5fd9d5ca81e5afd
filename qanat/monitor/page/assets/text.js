// Numbers as people read them.  Every function takes null for what is not known.
const NONE = "–";

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1000 || unit === "TiB") return `${value < 10 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1024;
  }
  return NONE;
}

export function rate(perSecond) {
  return perSecond === null || perSecond === undefined ? NONE : perSecond < 1 ? "0" : `${bytes(perSecond)}/s`;
}

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0 s";
  if (value < 0.0995) return `${(value * 1000).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// How long ago the moment `at` (Unix seconds) was, by the program's own clock `now`.
export function since(at, now) {
  return at === null || at === undefined ? NONE : seconds(Math.max(0, now - at));
}

export function count(value) {
  return value === null || value === undefined ? NONE : value.toLocaleString("en-US");
}

export function part(used, limit) {
  return limit ? `${Math.round((100 * used) / limit)} %` : NONE;
}
