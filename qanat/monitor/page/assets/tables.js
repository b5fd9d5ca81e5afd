// A table whose rows the server has filtered, sorted and cut into pages; a row that stays is changed in place, so that
// focus and selection survive an update.  All text goes in by textContent: names, agents and targets are strangers' words.

export class Table {
  // `columns`: {key, label, number?, wide?, sort?, text(row) or button(row) with press(row)}.  `asked` is called when
  // another order or page is wanted, with {sort, descending, offset}.
  constructor(element, pages, { caption, columns, keyOf, isBad, sort, asked, size }) {
    Object.assign(this, { element, pages, columns, keyOf, isBad, asked, size });
    this.sort = sort;
    this.descending = true;
    this.offset = 0;
    this.chosen = null;
    this.rows = new Map();
    this.words = element.appendChild(document.createElement("caption"));
    this.name = caption;
    const line = element.appendChild(document.createElement("thead")).appendChild(document.createElement("tr"));
    this.heads = columns.map((column) => {
      const head = line.appendChild(document.createElement("th"));
      head.scope = "col";
      head.className = column.number ? "number" : "";
      if (column.sort) {
        const button = head.appendChild(document.createElement("button"));
        button.type = "button";
        button.textContent = column.label;
        button.addEventListener("click", () => this.sortBy(column.sort));
      } else head.textContent = column.label;
      return head;
    });
    this.body = element.appendChild(document.createElement("tbody"));
    if (pages) {
      this.back = this.pageButton("Previous", -1);
      this.where = pages.appendChild(document.createElement("span"));
      this.next = this.pageButton("Next", 1);
    }
    this.markSort();
  }

  pageButton(label, step) {
    const button = this.pages.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => {
      this.offset = Math.max(0, this.offset + step * this.size);
      this.ask();
    });
    return button;
  }

  sortBy(key) {
    this.descending = this.sort === key ? !this.descending : true;
    this.sort = key;
    this.offset = 0;
    this.markSort();
    this.ask();
  }

  markSort() {
    this.columns.forEach((column, index) => {
      if (!column.sort) return;
      const order = column.sort === this.sort ? (this.descending ? "descending" : "ascending") : "none";
      this.heads[index].setAttribute("aria-sort", order);
    });
  }

  ask() {
    this.asked?.({ sort: this.sort, descending: this.descending, offset: this.offset });
  }

  // `found`: {total, matched, offset, rows}.
  show(found) {
    const kept = new Map();
    let before = null;
    for (const row of found.rows) {
      const key = this.keyOf(row);
      const line = this.rows.get(key) ?? this.newLine(row);
      line.row = row;
      kept.set(key, line);
      line.element.classList.toggle("bad", Boolean(this.isBad?.(row)));
      line.element.classList.toggle("chosen", this.chosen !== null && this.chosen === key);
      this.columns.forEach((column, index) => {
        const [cell, button] = line.cells[index];
        const text = column.text(row);
        const holder = button ?? cell;
        if (holder.textContent !== text) holder.textContent = text;
      });
      const wanted = before === null ? this.body.firstChild : before.nextSibling;
      if (line.element !== wanted) this.body.insertBefore(line.element, wanted);
      before = line.element;
    }
    for (const [key, line] of this.rows) if (!kept.has(key)) line.element.remove();
    this.rows = kept;
    const first = found.rows.length ? found.offset + 1 : 0;
    const last = found.offset + found.rows.length;
    const matched = found.matched < found.total ? `, ${found.matched} match` : "";
    this.words.textContent = `${found.total.toLocaleString("en-US")} ${this.name}${matched}`;
    if (this.pages) {
      this.pages.hidden = found.matched <= this.size && found.offset === 0;
      this.where.textContent = `${first}–${last} of ${found.matched.toLocaleString("en-US")}`;
      this.back.disabled = found.offset === 0;
      this.next.disabled = last >= found.matched;
    }
  }

  newLine(row) {
    const element = document.createElement("tr");
    const line = { element, row, cells: [] };
    line.cells = this.columns.map((column) => {
      const cell = element.appendChild(document.createElement("td"));
      cell.dataset.label = column.label;
      cell.className = [column.number ? "number" : "", column.wide ? "wide" : ""].join(" ").trim();
      if (!column.press) return [cell, null];
      const button = cell.appendChild(document.createElement("button"));
      button.type = "button";
      button.addEventListener("click", () => column.press(line.row));
      return [cell, button];
    });
    return line;
  }
}
