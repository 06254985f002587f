// Paper to draw a digit on: sends strokes, lists of points (x, y) in the unit square, whenever one ends.
export default {
  template: `<canvas class="paper" width="280" height="280" role="img" tabindex="0"
    aria-label="Paper: draw a digit with the mouse, a finger or a pen"></canvas>`,
  data: () => ({ strokes: [], down: null }),
  mounted() {
    const paper = this.$el;
    paper.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      paper.setPointerCapture(event.pointerId);
      this.down = event.pointerId;
      this.strokes.push([this.at(event)]);
      this.show();
    });
    paper.addEventListener("pointermove", (event) => {
      if (this.down !== event.pointerId) return;
      const stroke = this.strokes[this.strokes.length - 1];
      const [x, y] = this.at(event);
      const [a, b] = stroke[stroke.length - 1];
      if (Math.hypot(x - a, y - b) > 0.01) stroke.push([x, y]);
      this.show();
    });
    for (const end of ["pointerup", "pointercancel"])
      paper.addEventListener(end, (event) => {
        if (this.down !== event.pointerId) return;
        this.down = null;
        this.$emit("strokes", this.strokes);
      });
    this.show();
  },
  methods: {
    at(event) {
      const box = this.$el.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    },
    show() {
      const pen = this.$el.getContext("2d");
      const side = this.$el.width;
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, side, side);
      pen.strokeStyle = "#fff";
      pen.lineWidth = side / 14;
      pen.lineCap = pen.lineJoin = "round";
      for (const stroke of this.strokes) {
        pen.beginPath();
        for (const [x, y] of [...stroke, stroke[0]].slice(0, Math.max(2, stroke.length))) pen.lineTo(x * side, y * side);
        pen.stroke();
      }
    },
    clear() {
      this.strokes = [];
      this.show();
      this.$emit("strokes", this.strokes);
    },
  },
};
