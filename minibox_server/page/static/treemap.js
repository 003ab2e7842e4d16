// Sizes as areas. `squarify` is pure: it cuts a box into one rectangle for each size, as near to squares as it can.
// After M. Bruls, K. Huizing, J. van Wijk, "Squarified Treemaps", 2000.

/**
 * Return `{item, x, y, width, height}` for each item, whose `size` is above 0, the largest first.
 * The rectangles fill `box` (`{x, y, width, height}`), do not overlap, and have areas as the sizes are.
 */
export function squarify(items, box) {
  const sorted = items.filter((item) => item.size > 0).sort((one, other) => other.size - one.size);
  const sum = sorted.reduce((total, item) => total + item.size, 0);
  const scale = sum ? (box.width * box.height) / sum : 0;
  const cells = [];
  let rest = { ...box };
  let next = 0;
  while (next < sorted.length) {
    const side = Math.min(rest.width, rest.height);
    let end = next + 1;
    let area = sorted[next].size * scale;
    // A row takes one more as long as that makes its worst rectangle better.
    while (end < sorted.length) {
      const [largest, last, more] = [next, end - 1, end].map((at) => sorted[at].size * scale);
      const grown = area + more;
      if (worst(largest, more, grown, side) > worst(largest, last, area, side)) break;
      area = grown;
      end += 1;
    }
    rest = layRow(sorted.slice(next, end), scale, area, rest, cells);
    next = end;
  }
  return cells;
}

function worst(largest, smallest, area, side) {
  const square = area * area;
  return Math.max((side * side * largest) / square, square / (side * side * smallest));
}

function layRow(row, scale, area, box, cells) {
  const isUpright = box.width >= box.height;
  const thickness = area / (isUpright ? box.height : box.width) || 0;
  let along = isUpright ? box.y : box.x;
  for (const item of row) {
    const length = (item.size * scale) / thickness || 0;
    cells.push(isUpright
      ? { item, x: box.x, y: along, width: thickness, height: length }
      : { item, x: along, y: box.y, width: length, height: thickness });
    along += length;
  }
  return isUpright
    ? { x: box.x + thickness, y: box.y, width: Math.max(0, box.width - thickness), height: box.height }
    : { x: box.x, y: box.y + thickness, width: box.width, height: Math.max(0, box.height - thickness) };
}
