"use strict";
// The pictures: NiiVue with the scan at the bottom and the layers of one prompt over it.

const ORDER = ["pseudo_healthy", "attention", "residual", "uncertainty", "probability", "mask"]; // from the bottom up
const LEAST_TOP = { attention: 0.5, probability: 1, uncertainty: 0.25 }; // what is weak looks weak

// Black and white for MR: percentiles of what is above the background, so that a bright tumour keeps its texture.
function percentiles({ img, hdr, global_min: lowest }, share) {
  const step = Math.ceil(img.length / 300000);
  const values = [];
  for (let i = 0; i < img.length; i += step) {
    const value = img[i] * (hdr.scl_slope || 1) + hdr.scl_inter;
    if (value > lowest) values.push(value);
  }
  if (!values.length) return [lowest, lowest + 1];
  values.sort((a, b) => a - b);
  const [low, high] = [share, 1 - share].map((part) => values[Math.floor(part * (values.length - 1))]);
  return [low, Math.max(high, low + 1e-6)];
}

class Layers {
  constructor(canvas, onMove) {
    this.layers = new Map(); // name -> NVImage
    this.nv = new niivue.Niivue({
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isSliceMM: false,
      isRuler: true,
      rulerColor: [1, 1, 1, 0.9],
      rulerWidth: 2,
      crosshairColor: [0.51, 0.77, 1, 0.7],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      crosshairGap: 3,
      multiplanarShowRender: 1,
      multiplanarLayout: 2,
      show3Dcrosshair: true,
      isOrientCube: true,
      fontColor: [1, 0.55, 0.05, 1], // to be read on black and on white
      showAllOrientationMarkers: true,
      dragAndDropEnabled: false,
      clipPlaneColor: [0, 0, 0, 0],
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      logLevel: "error",
      loadingText: "loading …",
      isColorbar: false,
    });
    this.nv.onLocationChange = onMove;
    this.canvas = canvas;
  }

  async start() {
    await this.nv.attachToCanvas(this.canvas);
    this.nv.addColormap("opaque", { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] });
    this.nv.addColormap("cyan", { R: [0, 53], G: [0, 208], B: [0, 255], A: [0, 255], I: [0, 255] });
  }

  async openScan(url, window) {
    this.layers.clear();
    await this.nv.loadVolumes([{ url, name: "scan.nii.gz", colormap: "gray", colorbarVisible: false }]);
    this.scan = this.nv.volumes[0];
    this.setWindow(...(window || percentiles(this.scan, 0.005)));
  }

  setWindow(low, high) {
    for (const volume of [this.scan, this.layers.get("pseudo_healthy")]) {
      if (volume) [volume.cal_min, volume.cal_max] = [low, high];
    }
    this.nv.updateGLVolume();
  }

  dropLayers() {
    for (const volume of this.layers.values()) this.nv.removeVolume(volume);
    this.layers.clear();
  }

  // A layer is fetched when it is first shown.
  async show(layer, opacity) {
    let volume = this.layers.get(layer.name);
    if (!volume) {
      if (!opacity) return;
      volume = await niivue.NVImage.loadFromUrl({ url: layer.url, name: layer.name + ".nii.gz", opacity });
      this.layers.set(layer.name, volume);
      this.dress(volume, layer);
      this.nv.addVolume(volume);
      const below = ORDER.slice(0, ORDER.indexOf(layer.name)).filter((name) => this.layers.has(name));
      this.nv.setVolume(volume, 1 + below.length);
      return;
    }
    this.nv.setOpacity(this.nv.volumes.indexOf(volume), opacity);
  }

  dress(volume, layer) {
    if (layer.name === "pseudo_healthy") {
      volume.colormap = "opaque";
      [volume.cal_min, volume.cal_max] = [this.scan.cal_min, this.scan.cal_max];
    } else if (layer.name === "mask") {
      volume.colormap = "cyan";
      [volume.cal_min, volume.cal_max] = [0.5, 1];
    } else {
      volume.colormap = layer.colours;
      const top = Math.max(volume.global_max, LEAST_TOP[layer.name] || 1e-6);
      [volume.cal_min, volume.cal_max] = [top * 0.2, top];
    }
  }

  goTo(mm) {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.updateGLVolume();
    this.nv.createOnLocationChange();
  }

  step(right, anterior, superior) {
    this.nv.moveCrosshairInVox(right, anterior, superior);
  }

  // 0 leaves the volume whole; more cuts it from the front, facing the reader.
  cut(fraction) {
    this.nv.setClipPlane(fraction > 0 ? [0.5 - fraction, this.nv.scene.renderAzimuth + 180, 0] : [2, 0, 0]);
  }
}
